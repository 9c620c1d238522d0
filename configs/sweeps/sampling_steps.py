"""Solvers and their numbers of steps; trains nothing.

emo sweep configs/sweeps/sampling_steps.py --output runs/steps --checkpoint tiny
"""

CONFIG = "configs/tiny.py"
STAGES = ()
EVALUATE = ("--only", "lips", "identity", "seams", "--identities", "8")


def get_sweep():
    """Points (name, overrides)."""
    for solver in ("ddim", "dpm++2m"):
        for steps in (1, 2, 4):
            yield f"{solver}-{steps}", {"sampling.solver": solver, "sampling.steps": steps}
