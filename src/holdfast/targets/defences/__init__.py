"""Steps before a model that change or refuse an input."""
