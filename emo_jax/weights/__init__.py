"""Weights in and out, and the bundled small EMO."""
