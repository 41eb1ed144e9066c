"""Gradient attacks made to carry over to other models."""
