"""The laws: what holds for every attack, norm, loss and adapter, tested without their authors'
help."""
