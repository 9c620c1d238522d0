"""Measures on generated frames."""
