"""Speed buckets and face positions that are fitted to a dataset, and their config options."""

import argparse
import dataclasses
import shlex

import numpy as np
import pytest
from emo_jax.configs import base

from emo_jax import config
from emo_jax.cli.prepare import add_parser
from emo_jax.data import records
from emo_jax.preparation.statistics import fit_face, fit_speed_buckets, format_config_options, read_head_tracks


def test_buckets_contain_similar_numbers_of_speeds():
    speeds = np.random.default_rng(0).exponential(0.6, 20000)
    centres, radii = fit_speed_buckets(speeds, 9)
    assert len(centres) == len(radii) == 9 and min(radii) > 0 and (np.diff(centres) > 0).all()
    nearest = np.abs(speeds[:, None] - centres).argmin(1)
    assert np.bincount(nearest).min() > 0.6 * len(speeds) / 9 and np.bincount(nearest).max() < 1.5 * len(speeds) / 9
    assert fit_speed_buckets(2 * speeds, 9)[0] == pytest.approx(2 * np.array(centres), abs=2e-3)


def test_equal_speeds_give_distinct_buckets():
    centres, radii = fit_speed_buckets(np.full(100, 0.5), 4)
    assert (np.diff(centres) > 0.01).all() and min(radii) > 0.01


@pytest.mark.parametrize("count, speeds", [(1, 10), (9, 8)])
def test_too_few_buckets_or_speeds_raise(count, speeds):
    with pytest.raises(ValueError, match=f"buckets is {count} for {speeds} speeds"):
        fit_speed_buckets(np.ones(speeds), count)


@pytest.mark.filterwarnings("ignore:the load_module")  # raised inside ml_collections
def test_formatted_options_set_the_config():
    values = {"model.speed.centres": [0.1, 0.25, 1.0], "model.speed.radii": [0.15, 0.2, 0.75], "clip.face.height": 0.5}
    parsed = config.parse(["--config=configs/base.py:speed", *shlex.split(format_config_options(values))])
    assert parsed.model.speed.centres == (0.1, 0.25, 1.0) and parsed.model.speed.radii == (0.15, 0.2, 0.75)
    assert parsed.clip.face.height == 0.5


def test_fit_face_from_boxes():
    box = np.array([0.3, 0.2, 0.7, 0.7])
    still, sways = np.tile(box, (30, 1)), np.tile(box, (12, 1))
    assert fit_face([still], 12) == dict(height=0.5, centre=[0.5, 0.45], growth=[0, 0, 0, 0])
    sways[3] += (-0.04, 0, -0.04, 0)
    sways[7] += (0, 0, 0, 0.1)
    assert fit_face([sways], 12)["growth"] == [0.1, 0, 0, 0.2]
    with pytest.raises(ValueError, match="31 frames"):
        fit_face([still], 31)


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["prepare", "stats", *arguments])
    args.main(args, None)


def test_stats_command(record_dir, capsys):
    run(str(record_dir), "--buckets", "3")
    captured = capsys.readouterr()
    assert "reliable" not in captured.err
    tracks = read_head_tracks(str(record_dir))
    assert len(tracks.speeds) == sum(40 + 4 * k for k in range(6))
    np.testing.assert_allclose(tracks.boxes[0][0], [12 / 64, 8 / 48, 30 / 64, 28 / 48], rtol=1e-5)
    centres, radii = fit_speed_buckets(tracks.speeds, 3)
    view = sum(base.get_config().data.crop_scale) / 2
    face = {f"clip.face.{name}": value for name, value in fit_face(tracks.boxes, 12, view).items()}
    assert captured.out.strip() == format_config_options(
        {"model.speed.centres": centres, "model.speed.radii": radii} | face
    )
    assert len(face) == 3


def test_fit_face_takes_the_crop_into_account():
    boxes = [np.tile([0.4, 0.5, 0.6, 0.8], (24, 1))]
    full, view = fit_face(boxes, 12), fit_face(boxes, 12, 0.8)
    assert full["height"] == 0.3 and view["height"] == 0.375
    assert full["centre"] == [0.5, 0.65] and view["centre"] == [0.5, 0.688]


def test_unreliable_speeds_are_left_out(tmp_path, make_record, capsys):
    reliable, unreliable = np.full(40, 0.9, np.float32), np.full(44, 0.2, np.float32)
    made = [dataclasses.replace(make_record(k), speed_confidence=c) for k, c in enumerate((reliable, unreliable))]
    records.write_records(tmp_path / "both", {"train": lambda: made}, progress=False)
    assert len(read_head_tracks(str(tmp_path / "both")).speeds) == 40
    records.write_records(tmp_path / "one", {"train": lambda: made[1:]}, progress=False)
    run(str(tmp_path / "one"))
    assert "--faces" in capsys.readouterr().err
