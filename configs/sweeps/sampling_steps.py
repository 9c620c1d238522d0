"""Solvers and their numbers of steps; trains nothing.

emo sweep configs/sweeps/sampling_steps.py --output runs/steps --checkpoint tiny

Up to three steps the solvers are one: from pure noise, after it, and to the end DPM-Solver++(2M) steps as DDIM does.
"""

CONFIG = "tiny"
STAGES = ()
EVALUATE = ("--only", "lips", "identity", "seams", "--identities", "8")


def get_sweep():
    """Points (name, overrides)."""
    for solver, counts in (("ddim", (1, 2, 3, 4)), ("dpm++2m", (4, 6))):
        for steps in counts:
            yield f"{solver}-{steps}", {"sampling.solver": solver, "sampling.steps": steps}
