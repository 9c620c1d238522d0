"""Configs by size and stage, installed as `emo_jax.configs`."""
