"""Hardening: recipes that make a network robust, and the measure before and after."""
