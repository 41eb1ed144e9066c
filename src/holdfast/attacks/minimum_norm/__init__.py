"""Attacks that seek the smallest change, by gradients."""
