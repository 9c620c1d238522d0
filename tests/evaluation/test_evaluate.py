"""`emo evaluate`: the rows of good and bad models, and the command."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from emo_jax.cli import main as cli
from emo_jax.config import set_fields
from emo_jax.evaluation import properties
from emo_jax.evaluation.evaluate import PROPERTIES, Evaluation, evaluate, select_properties
from emo_jax.evaluation.report import table, write_report
from emo_jax.faces.boxes import mask_from_box
from emo_jax.generation import options
from tests.small import small_config

PEOPLE, FRAMES, LEVELS = 3, 60, 4
RNG = np.random.default_rng(0)
OPENINGS = np.clip(np.cumsum(RNG.normal(0, 0.3, (PEOPLE, FRAMES)), 1) % 2 - 0.6, 0, 1)


class Painted:
    """An evaluation whose frames encode their measures: pixel (0, 0) is opening, x, y; pixel (0, 1) is speed, person.

    `deaf` draws the truth whatever the voice is, `stuck` the face in one place, `lost` everybody with one face.
    """

    def __init__(self, deaf=False, stuck=False, lost=False, wanted=PROPERTIES):
        self.deaf, self.stuck, self.lost, self.wanted = deaf, stuck, lost, set(wanted)
        speed = dict(centres=(0.1, 0.2, 0.8, 2.0, 2.8))
        self.config = ConfigDict(dict(model=dict(speed=speed), clip=dict(frames=8, fps=25.0)))
        self.clip, self.long = self.config.clip, 4.0
        people = np.arange(PEOPLE)
        self.people = SimpleNamespace(
            references=self.paint(OPENINGS[:, :1], people)[:, 0], others=self.paint(OPENINGS[:1, :1], [9])[:, 0],
            voices=np.repeat(people[:, None], 7, 1), openings=OPENINGS, masks=self.masks,
            renders=self.paint(OPENINGS, people), rendered_openings=OPENINGS, rendered_speeds=np.ones((PEOPLE, FRAMES)),
        )  # fmt: skip

    def masks(self, shift=(0, 0)):
        x, y = 40 + 64 * shift[0], 30 + 64 * shift[1]
        return np.stack([mask_from_box((x - 10, y - 10, x + 10, y + 10), 64, 64)] * PEOPLE)

    def paint(self, openings, people, centre=(0.5, 0.5), speed=0.0):
        frames = np.zeros((*openings.shape, 2, 2, 3), np.uint8)
        frames[..., 0, 0, 0] = np.round(openings * 255)
        frames[..., 0, 0, 1:] = np.round(np.multiply(centre, 255))
        frames[..., 0, 1, 0] = np.round(speed * 100)
        frames[..., 0, 1, 1] = np.reshape(people, (-1, 1))
        return frames

    def generate(self, what, *, off=(), voices=None, masks=None, speed=None, people=None):
        from emo_jax.evaluation.motion import mask_centres

        heard = np.arange(PEOPLE) if self.deaf or voices is None else voices[:, 0]
        centre = (0.5, 0.5)
        if masks is not None and not self.stuck and "locator" not in off:
            centre = mask_centres(masks)[0]
        persons = np.zeros(PEOPLE) + 9 if self.lost or "reference" in off else np.arange(PEOPLE)
        return self.paint(OPENINGS[heard], persons, centre, speed or 0)

    def stream(self, what, *, voices, people):
        yield from np.array_split(self.paint(np.zeros((people, 100)), np.arange(people)), 3, axis=1)

    def short(self, seconds):
        assert seconds >= 4
        return self.people.voices

    def measure(self, frames):
        values = frames.astype(float)
        yaw = np.cumsum(values[..., 0, 1, 0] / 100, -1) if frames.ndim > 4 else np.zeros(len(frames))
        return {
            "opening": values[..., 0, 0, 0] / 255, "centre": values[..., 0, 0, 1:] / 255,
            "rotation": np.stack([yaw, 0 * yaw, 0 * yaw], -1), "identity": values[..., 0, 1, 1:2],
        }  # fmt: skip


def test_a_perfect_model_passes_and_its_controls_fail():
    rows, frames = properties.talk_rows(Painted())
    rows += [properties.speed_row(Painted()), properties.place_row(Painted())]
    rows = {row.property: row for row in rows}
    assert list(rows) == ["lips", "silence", "identity", "seams", "speed", "place"]
    assert rows["lips"].value == pytest.approx(1, abs=1e-3) and rows["lips"].renders == pytest.approx(1, abs=1e-3)
    assert rows["place"].value == pytest.approx(1, abs=0.05)
    assert rows["place"].detail["seconds"] == rows["speed"].detail["seconds"] == FRAMES / 25
    assert rows["speed"].detail["degrees_per_frame"] == pytest.approx([0.2, 0.8, 2.0], rel=0.02)
    assert all(rows[name].passed for name in ("lips", "silence", "identity", "speed", "place"))
    assert all(rows[name].control_failed for name in ("lips", "identity", "place"))
    assert rows["seams"].control_failed is False  # these frames do not depend on motion frames
    assert frames.shape[:2] == (PEOPLE, FRAMES)


def test_model_that_ignores_the_audio_does_not_fail_its_control():
    rows, _ = properties.talk_rows(Painted(deaf=True, wanted=["lips"]))
    assert [row.property for row in rows] == ["lips"]
    assert rows[0].passed and not rows[0].control_failed


def test_face_that_does_not_follow_the_mask_fails():
    row = properties.place_row(Painted(stuck=True))
    assert row.value == pytest.approx(0) and not row.passed


def test_equal_faces_for_all_people_fail():
    rows, _ = properties.talk_rows(Painted(lost=True, wanted=["identity"]))
    assert rows[0].value == pytest.approx(1 / PEOPLE) and not rows[0].passed  # the face of one of the people


def test_identity_control_of_few_people_has_a_lower_bar():
    rows, _ = properties.talk_rows(Painted(wanted=["identity"]))
    assert rows[0].control_bar == 0.5  # of three people, chance finds one in three


def test_speed_and_place_are_measured_on_four_seconds():
    config = small_config()
    config.sampling.clips = 4  # segments of 16 frames
    for seconds in (1.0, 5.0):
        voices = np.arange(2 * 16000 * seconds).reshape(2, -1)
        people = SimpleNamespace(voices=voices, openings=np.zeros((2, 100)), references=np.zeros(2))
        ev = Evaluation(config, None, people, None, wanted=["speed", "place"])
        made = ev.short(properties.MOVED_SECONDS)
        assert made.shape == (2, 64000) and np.array_equal(made[:, :16000], voices[:, :16000])
        assert ev._segments() == (3 + 2 * 5) * 7  # of 25 clips: one, six times four


def test_speeds_out_of_order_fail(monkeypatch):
    ev = Painted()
    monkeypatch.setattr(ev.config.model.speed, "centres", (0.1, 0.8, 0.2, 2.0, 2.8))
    row = properties.speed_row(ev)
    assert row.value == 0 and not row.passed and "order" in row.measure


def test_length_compares_the_ends_of_a_stream(monkeypatch):
    monkeypatch.setattr(properties, "long_voices", lambda count, seconds: np.zeros((count, 8)))
    row = properties.length_row(Painted())
    assert row.detail["colour"] == pytest.approx(1) and row.property == "length"


def test_peak_memory_is_that_of_the_command():
    small, large = (properties.peak_memory([sys.executable, "-c", f"bytearray({n} << 20)"]) for n in (1, 200))
    assert 150 < large - small < 250
    with pytest.raises(ValueError, match="exit status 3.*no luck"):
        properties.peak_memory([sys.executable, "-c", "import sys; print('no luck', file=sys.stderr); sys.exit(3)"])


def test_table_shows_what_passed_and_report_is_json(tmp_path):
    rows = [
        properties.Row("lips", "r", 0.7, 0.6, control="shuffled", control_value=0.3, control_bar=0.15),
        properties.Row("seams", "ratio", 1.4, 1.3, below=True),
        properties.Row("silence", "ratio", float("nan"), 0.35, below=True),
    ]
    lines = table(rows).splitlines()
    assert "pass" in lines[1] and "DOES NOT FAIL" in lines[1]
    assert "FAIL" in lines[2] and "<= 1.3" in lines[2] and "FAIL" in lines[3]
    write_report(tmp_path / "report.json", rows, {"seed": 0})
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["passed"] for row in report["rows"]] == [True, False, False]
    assert report["rows"][0]["control_failed"] is False and report["settings"] == {"seed": 0}


def test_select_properties():
    assert select_properties() == list(PROPERTIES[:-1])
    assert "memory" in select_properties(memory=True)
    assert "length" not in select_properties(long=0)
    with pytest.raises(ValueError, match="'tongue'"):
        select_properties(["lips", "tongue"])


def test_bad_settings_leave_no_folder(weights_dir, tmp_path):
    output = str(tmp_path / "out")
    with pytest.raises(ValueError, match="--identities is 1"):
        evaluate(str(weights_dir), output, identities=1)
    with pytest.raises(ValueError, match="none"):
        evaluate(str(tmp_path / "none"), output)
    with pytest.raises(ValueError, match="sampling.clips is 0"):
        evaluate(str(weights_dir), output, sampling={"clips": 0})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--sampling", "eta=0.5", "clips=0"], ["--sampling.clips=0"]])
def test_sampling_fields_on_the_command_line(weights_dir, tmp_path, capsys, option):
    assert cli.main(["evaluate", "--checkpoint", str(weights_dir), "-o", str(tmp_path / "out"), *option]) == 2
    assert "sampling.clips is 0" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [0, 1001])
def test_more_steps_than_training_timesteps_raise(steps):
    config = small_config()
    set_fields(config.sampling, {"steps": steps}, "sampling")
    with pytest.raises(ValueError, match=f"^sampling.steps is {steps}; .* 1 to 1000"):
        options.check_sampling(config.sampling, config.diffusion.train_steps)


@pytest.mark.slow
def test_command_with_untrained_weights(tmp_path, capsys):
    import jax

    from emo_jax.models.emo import build
    from emo_jax.weights.store import save_weights

    config = small_config()
    config.sampling.clips = 2
    params = build(config).init(jax.random.key(0))
    save_weights(tmp_path / "model", config, flatten_dict(params, sep="/"))
    options = ["--checkpoint", str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--identities", "2"]
    assert cli.main(["evaluate", *options, "--seconds", "1", "--steps", "1", "--long", "2"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "frames.png"}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["property"] for row in report["rows"]] == list(PROPERTIES[:-1])
    assert not report["rows"][0]["passed"] and "lips" in capsys.readouterr().out
