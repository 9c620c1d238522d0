"""Ablation sweeps for `emo sweep`: each file varies a few fields of one config."""
