"""One file a framework: how its models give scores and gradients."""
