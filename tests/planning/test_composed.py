"""The parts of a composed step: together they make up the step, and each kind of block is compiled once."""

import functools
import re

import jax
import pytest

from emo_jax.cli import main as cli
from emo_jax.data.pipeline import element_spec
from emo_jax.distributed.mesh import make_mesh
from emo_jax.models.emo import build
from emo_jax.planning import composed
from emo_jax.training.stages import clip_of, get_stage
from emo_jax.training.step import new_state
from tests.distributed.layouts import smallest_config


@functools.cache
def parts_of(stage, also=(), **model):
    """Returns (state, parts of the step) on one device."""
    config = smallest_config(stage)
    config.train.also = also
    config.model.update(model)
    emo, mesh = build(config), make_mesh(devices=jax.devices()[:1])
    state = jax.eval_shape(functools.partial(new_state, config), emo.abstract_params())
    spec = element_spec(clip_of(config, get_stage(stage)), config.train.batch_size)
    batch = {name: jax.ShapeDtypeStruct(*array) for name, array in spec.items()}
    return state, composed.parts_of_step(emo, config, mesh, state, batch)


def blocks(parts):
    """Returns (first call, parameters, whether it has a backward pass, count) of each kind of block."""
    kinds = [(*part.lower.args[1:], part.count) for part in parts[:-2]]
    return [(call, trained | frozen, backward, count) for call, trained, frozen, backward, count in kinds]


@pytest.mark.slow
def test_every_parameter_is_in_one_part():
    state, parts = parts_of("video")
    level = re.compile(r"(backbone|reference_net)/((down|up)_blocks_\d+|mid_block)/")
    levels = [path for path in state.flat() if level.match(path)]
    assert sum(len(parameters) * count for _, parameters, _, count in blocks(parts)) == len(levels) > 300
    kinds = {(call.module.__name__, call.prefix.split("/")[0]) for call, *_ in blocks(parts)}
    assert kinds == {
        ("ResnetBlock", "reference_net"), ("SpatialTransformer", "reference_net"), ("ResnetBlock", "backbone"),
        ("SpatialTransformer", "backbone"), ("MotionModule", "backbone"),
    }  # fmt: skip
    (rest, *_), _ = parts[-2].lower().args_info
    assert "backbone/conv_in/kernel" in rest and set(rest) == set(state.trained) - set(levels)


def test_blocks_before_everything_trained_have_no_backward_pass():
    _, parts = parts_of("speed")
    backward = {call.prefix: backward for call, _, backward, _ in blocks(parts)}
    assert not backward["reference_net/down_blocks_0/resnets_0"] and not backward["backbone/down_blocks_0/resnets_0"]
    assert backward["backbone/down_blocks_0/motion_modules_0"]
    later = next(part for part in parts if part.name.startswith("ResnetBlock backbone 4x4x4x32"))
    outputs, (trained, inputs) = jax.tree.unflatten(later.lower().out_tree, range(later.lower().out_tree.num_leaves))
    assert trained == {} and len(inputs) == 2


def test_blocks_after_a_trained_face_locator_have_a_backward_pass():
    _, parts = parts_of("speed", also=("face_locator",))
    backward = {call.prefix: backward for call, _, backward, _ in blocks(parts)}
    assert not backward["reference_net/down_blocks_0/resnets_0"] and backward["backbone/down_blocks_0/resnets_0"]


def test_reference_net_is_absent_without_reference_attention():
    _, parts = parts_of("image", reference_attention="off")
    assert not any("reference_net" in part.name for part in parts) and any("backbone" in part.name for part in parts)


def stats(peak=5, **more):
    row = dict(kind="all-gather", dtype="bf16", network=False, looped=False, count=2, bytes=8, sent=7)
    return dict(peak=peak, temporaries=3, accessed=10, collectives=[row], compiler="tpu 1", cached=True, **more)


def test_compose_adds_up_the_parts(monkeypatch):
    parts = [composed.Part("block", lambda: 5, 3), composed.Part("update", lambda: 4, once=True)]
    monkeypatch.setattr(composed, "compile_stats", lambda lowered, *_: stats(peak=lowered))
    found = composed.compose(parts, 1, "v5e:2x2", None)
    assert found["temporaries"] == 3 and found["accessed"] == 40 and found["cached"] is True and found["compiled"] == 0
    [row] = found["collectives"]
    assert (row["count"], row["bytes"], row["sent"], row["looped"]) == (8, 32, 28, False)
    twice = composed.compose(parts, 2, "v5e:2x2", None)
    assert [(row["count"], row["looped"]) for row in twice["collectives"]] == [(6, True), (2, False)]
    assert twice["accessed"] == 35  # of each round
    monkeypatch.setattr(composed, "compile_stats", lambda *_: stats(peak=None, why="hbm"))
    found = composed.compose(parts, 1, "v5e:2x2", None)
    assert (found["peak"], found["accessed"], found["collectives"], found["why"]) == (None, None, [], "block: hbm")


@pytest.mark.parametrize("stage, more, value", [("video", ["--program=denoise"], "denoise"), ("vae", [], "vae")])
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections
def test_composed_plan_of_programs_without_blocks_raises(stage, more, value, capsys):
    command = ["plan", f"--config=configs/small.py:{stage}", "--topology=cpu:1", "--composed", *more]
    assert cli.main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--composed" in line and value in line
