"""The first steps of every stage: golden numbers, and which parameters move.

python -m tests.training.test_first_steps    # prints GOLDEN; for changes that are meant to change the numbers
"""

import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from emo_jax.models.parts import part_of
from emo_jax.training.stages import STAGES
from tests.steps import STEPS, first_steps

# {stage: [(loss, gradient norm) of steps 1, 2, 3]}
GOLDEN = {
    "vae": [(1.017602, 0.563457), (1.026565, 0.538455), (1.003748, 0.484433)],
    "image": [(0.553773, 4.6565), (0.670417, 3.90046), (0.544963, 3.20247)],
    "video": [(0.613292, 3.58901), (0.662378, 2.77748), (0.531752, 1.98936)],
    "speed": [(0.618506, 0.702), (0.668401, 0.67467), (0.561352, 0.39245)],
    "distill": [(0.01789, 0.52216), (0.0229182, 0.684323), (0.0153448, 0.679076)],
}


STAGES_RUN = [
    pytest.param(stage, marks=[pytest.mark.slow] if stage != "vae" else [], id=stage) for stage in STAGES
]
"""A step takes 40 s of CPU time to compile."""


def _numbers(stage):
    return [(m["loss"], m["grad_norm"]) for m in first_steps(stage).metrics]


@pytest.mark.parametrize("stage", STAGES_RUN)
def test_golden_first_steps(stage):
    np.testing.assert_allclose(_numbers(stage), GOLDEN[stage], rtol=2e-3)


@pytest.mark.parametrize("stage", STAGES_RUN)
def test_exactly_the_stage_s_parameters_get_gradients_and_move(stage):
    first, second, *_, last = first_steps(stage).states
    gradients = optax.tree_utils.tree_get(second.opt_state, "mu")  # (1 - beta1) times the first gradient
    only = {"distill": "backbone/"}.get(stage, "")
    wanted = {path for path in {**first.trained, **first.frozen} if part_of(path) in STAGES[stage].trains}
    wanted = {path for path in wanted if path.startswith(only)}
    assert set(gradients) == set(first.trained) == set(first.ema) == wanted
    dead = [path for path, g in gradients.items() if not np.abs(g).max() > 0 or not np.isfinite(g).all()]
    assert not dead
    still = [path for path in first.trained if np.array_equal(first.trained[path], last.trained[path])]
    assert not still
    for path, value in first.frozen.items():
        np.testing.assert_array_equal(value, last.frozen[path], err_msg=path)


@pytest.mark.parametrize("stage", STAGES_RUN)
def test_gradient_norm_of_every_part(stage):
    for metrics in first_steps(stage).metrics:
        parts = {name: value for name, value in metrics.items() if name.startswith("grad_norm/")}
        assert set(parts) == {f"grad_norm/{part}" for part in STAGES[stage].trains}
        np.testing.assert_allclose(np.linalg.norm(list(parts.values())), metrics["grad_norm"], rtol=1e-5)
    assert len(parts) == 1 or len(set(parts.values())) > 1


@pytest.mark.parametrize("stage", STAGES_RUN[2:])
def test_trap_2_every_motion_module_is_trained_in_its_stages_only(stage):
    gradients = optax.tree_utils.tree_get(first_steps(stage).states[1].opt_state, "mu")
    modules = {path: g for path, g in gradients.items() if "motion_modules" in path}
    names = {path.split("/transformer_blocks")[0] for path in modules if "transformer_blocks" in path}
    assert len(names) == 1 + 1 + 1 + 2 + 2  # per layer of the small UNet: down, down, middle, up, up
    assert all(np.abs(g).max() > 0 for g in modules.values())
    for other in ("vae", "image"):
        assert not {part_of(path) for path in modules} & set(STAGES[other].trains)


def test_all_parameters_but_the_vae_scale_are_trained_in_some_stage():
    paths = flatten_dict(first_steps("vae").emo.abstract_params(), sep="/")
    trained = {path for stage in STAGES for path in paths if part_of(path) in STAGES[stage].trains}
    assert set(paths) - trained == {"vae/scaling_factor"}


@pytest.mark.parametrize("stage", STAGES_RUN)
def test_steps_are_counted_and_weights_stay_float32(stage):
    states = first_steps(stage).states
    assert [int(state.step) for state in states] == list(range(STEPS + 1))
    assert {str(a.dtype) for a in (*states[-1].trained.values(), *states[-1].ema.values())} == {"float32"}


if __name__ == "__main__":
    for name in STAGES:
        print(f'    "{name}": {[(round(a, 6), round(b, 5)) for a, b in _numbers(name)]},')
