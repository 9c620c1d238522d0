"""Noise schedule, solvers, guidance and the two scans (over steps, over clips). Knows no network, only callables."""
