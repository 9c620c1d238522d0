"""Measurements for a user's own machine, run by `emo bench NAME`.

Each module has ``measure(...)``, which returns rows (dicts with the same keys). `emo bench` prints the rows as a table
and writes them as JSON. Scripts that need the fixtures of the tests are in the top-level ``benchmarks/``.
"""
