"""A live endpoint as a model."""
