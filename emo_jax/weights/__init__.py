"""Weights in and out, and the bundled tiny EMO."""
