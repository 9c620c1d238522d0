"""Noise schedule, solvers, guidance, and the scans over denoising steps and clips; networks are passed as callables."""
