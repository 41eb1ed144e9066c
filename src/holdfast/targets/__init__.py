"""Targets: models behind one narrow door."""
