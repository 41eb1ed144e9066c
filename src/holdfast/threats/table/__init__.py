"""Rows of a table: what their columns are, what may change, and which relations hold."""
