"""The judge, the protocols, and the one call that turns a model and data into evidence."""
