"""Solvers and numbers of sampling steps; no training.

    emo sweep configs/sweeps/sampling_steps.py --output runs/steps --checkpoint small

DPM-Solver++(2M) equals DDIM in up to three steps: its first steps and its last are of first order. With weights
of `tiny` and drawn people, one step was too few (lips 0.79); from two steps on lips were 0.90 and identity 1.00, and
seams grew from 1.31 to 1.42.
"""

from collections.abc import Iterator

CONFIG = "small"
STAGES = ()
EVALUATE = ("--world", "people", "--only", "lip-gap", "likeness", "seams", "--identities", "8")


def get_sweep() -> Iterator[tuple[str, dict[str, object]]]:
    """Yields (name, overrides) of each point."""
    for solver, counts in (("ddim", (1, 2, 3, 4)), ("dpm++2m", (4, 6))):
        for steps in counts:
            yield f"{solver}-{steps}", {"sampling.solver": solver, "sampling.steps": steps}
