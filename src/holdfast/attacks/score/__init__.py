"""Attacks that ask for the model's scores alone."""
