"""Which devices share a video."""

import json

import pytest

from emo_jax.cli import main as cli
from emo_jax.planning import video_groups
from emo_jax.planning.plan import count_program
from emo_jax.planning.topologies import describe_devices
from emo_jax.planning.video_groups import plan_videos, video_lines
from tests.small import small_config

TOPOLOGY = "v5e:2x4"


@pytest.fixture(scope="module")
def spreads():
    """Function (videos) -> the ways to spread them over eight chips."""
    config = small_config("speed")
    config.sampling.update(steps=3, reference_scale=2.0, audio_scale=2.0)  # two passes, and frames that halve
    devices = describe_devices(TOPOLOGY, 1)
    counted = count_program(config, devices[:1], "v5e:1", "denoise")

    def plan(videos, seconds=1.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(video_groups, "count_program", lambda *arguments: counted)  # once for all tests
            return plan_videos(config, devices, TOPOLOGY, videos, seconds, compile=False)

    return plan


def test_many_videos_get_a_device_each(spreads):
    best, *others = spreads(16)
    assert (best.devices, best.groups, best.rounds, best.idle, best.sent) == (1, 8, 2, 0, 0.0)
    assert {spread.devices for spread in others} >= {2, 4, 8}
    assert all(spread.seconds >= best.seconds for spread in others)
    assert "send nothing" in "\n".join(video_lines([best, *others], TOPOLOGY, 8, 16, 1.0))


def test_few_videos_share_the_devices(spreads):
    best, *others = spreads(2)
    assert (best.devices, best.groups, best.rounds, best.idle, best.sent) == (4, 2, 1, 0, None)
    alone = next(spread for spread in others if spread.devices == 1)
    assert alone.idle == 6 and alone.flops == pytest.approx(4 * best.flops)
    text = "\n".join(video_lines([best, *others], TOPOLOGY, 8, 2, 1.0))
    assert "6 of 8 would be idle" in text and "--devices-per-video 4" in text


def test_cost_grows_with_rounds_steps_and_length(spreads):
    one = {spread.devices: spread.flops for spread in spreads(8)}
    assert {spread.devices: spread.flops for spread in spreads(16)}[1] == 2 * one[1]
    longer = {spread.devices: spread.flops for spread in spreads(8, 4.0)}
    assert longer[1] == pytest.approx(one[1] * 25 / 7)  # clips of four frames


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections
def test_command(tmp_path, capsys):
    given = ["plan", "--program", "generate", "--topology", "cpu:4", "--no-compile", "--config", "tests/small.py"]
    config = tmp_path / "small.py"
    config.write_text("from tests.small import small_config as get_config\n")
    given[-1] = f"{config}:speed"
    output = tmp_path / "plan.json"
    assert cli.main([*given, "--videos", "3", "--seconds", "2", "-o", str(output)]) == 0
    table = json.loads(output.read_text())
    assert table["videos"] == 3 and table["spreads"][0]["seconds"] is None
    assert f"--devices-per-video {table['spreads'][0]['devices']}" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections
@pytest.mark.parametrize(
    "options, named",
    [
        (["--videos", "0"], "--videos is 0"),
        (["--seconds", "0"], "--seconds is 0.0"),
        (["--slices", "2"], "one slice"),
        (["--program", "denoise", "--videos", "2"], "--videos"),
    ],
)
def test_wrong_options_are_named(options, named, capsys):
    program = [] if "--program" in options else ["--program", "generate"]
    assert cli.main(["plan", *program, "--topology", "cpu:2", "--no-compile", *options]) == 2
    assert named in capsys.readouterr().err
