"""Attacks that change few features."""
