"""Measures of generated videos on held-out people, tables, plots and sweeps."""
