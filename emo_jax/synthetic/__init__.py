"""The rendered world: people and voices with known truth, for training and evaluation."""
