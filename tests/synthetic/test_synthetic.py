"""The procedural talking-head world: people, motion, drawings, records."""

import argparse
import itertools
import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest

from emo_jax.cli.prepare import add_parser
from emo_jax.data import records
from emo_jax.faces.rotation import rotation_matrices, rotation_speed
from emo_jax.media import mp4
from emo_jax.synthetic import world as synthetic
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import APPEARANCE_NAMES, Identity
from emo_jax.synthetic.rendering import face_box, mouth_box, nose_tip, render
from emo_jax.synthetic.world import Track
from emo_jax.workers import map_in_order

SIZE = 96


def track(seed, frames=125, fps=25):
    return Track.sample(np.random.default_rng([seed, 1]), frames, fps)


def difference(first, second):
    return np.abs(first.astype(int) - second.astype(int)).mean()


def test_equal_seeds_give_equal_people_and_pictures():
    state = State(yaw=12, opening=0.5)
    for seed in range(6):
        drawn = render(Identity.sample(seed), state, SIZE)
        person = Identity.sample(seed)
        render(person, State(yaw=-20), SIZE)  # what was drawn before leaves no trace
        assert np.array_equal(render(person, state, SIZE), drawn)
        assert np.array_equal(render(pickle.loads(pickle.dumps(person)), state, SIZE), drawn)
        assert drawn.shape == (SIZE, SIZE, 3) and drawn.dtype == np.uint8


def test_people_and_their_appearance_vectors_differ():
    people = [Identity.sample(seed) for seed in range(40)]
    table = np.stack([person.appearance for person in people])
    assert table.shape == (40, len(APPEARANCE_NAMES)) and table.dtype == np.float32
    assert table.min() >= 0 and table.max() <= 1
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1) + 10 * np.eye(40)
    assert distances.min() > 0.5
    assert difference(render(people[0], State(), SIZE), render(people[1], State(), SIZE)) > 10


@pytest.mark.parametrize("size", [64, 160])
def test_a_turned_head_moves_its_features(size):
    person = Identity.sample(3)
    left, ahead, right = (nose_tip(person, State(yaw=yaw), size)[0] for yaw in (-25, 0, 25))
    assert left < ahead - 0.08 * size and right > ahead + 0.08 * size
    assert nose_tip(person, State(pitch=15), size)[1] > nose_tip(person, State(pitch=-15), size)[1] + 0.05 * size
    assert nose_tip(person, State(roll=15), size)[0] > ahead  # leans clockwise about the neck
    assert difference(render(person, State(yaw=20), size), render(person, State(), size)) > 3


def test_the_head_fits_the_picture_and_the_mouth_fits_the_box():
    for seed in range(12):
        person = Identity.sample(seed)
        for state in (
            State(),
            State(30, 18, 15, 0.012, 0.012, opening=1),
            State(-30, -18, -15, -0.012, -0.012, opening=1),
        ):
            x0, y0, x1, y1 = face_box(person, state, 160)
            assert 0 < x0 and 0 < y0 and x1 < 160 and y1 < 160
            assert 45 < x1 - x0 < 90 and 45 < y1 - y0 < 110
            left, top, right, bottom = mouth_box(person, state, 160)
            assert x0 - 1 <= left and right <= x1 + 1 and y0 < top and bottom < y1 + 1


def test_opening_is_visible_and_stays_in_the_face():
    person = Identity.sample(0)
    shut, wide = render(person, State(), 160), render(person, State(opening=1), 160)
    changed = np.argwhere(np.abs(shut.astype(int) - wide).max(-1) > 25)
    assert len(changed) > 150
    x0, y0, x1, y1 = face_box(person, State(opening=1), 160)
    inside = (changed[:, 1] > x0) & (changed[:, 1] < x1) & (changed[:, 0] > (y0 + y1) / 2)
    assert inside.mean() > 0.9
    heights = [np.diff(mouth_box(person, State(opening=opening), 160)[1::2])[0] for opening in (0, 0.5, 1)]
    assert np.diff(heights).min() > 0.09 * 160 * person.shape["face_height"]
    widths = [np.diff(mouth_box(person, State(width=width), 160)[::2])[0] for width in (0, 1)]
    assert widths[1] > 1.5 * widths[0]


def test_blinks_hide_the_eyes():
    person = next(p for p in map(Identity.sample, range(50)) if p.glasses == "none" and p.fringe == "none")
    assert difference(render(person, State(), SIZE), render(person, State(blink=1), SIZE)) > 0.3


def test_speed_is_the_geodesic_angle():
    yaw = np.column_stack([np.arange(20) * 0.7, np.zeros(20), np.zeros(20)])
    assert np.allclose(rotation_speed(yaw), 0.7, atol=1e-5)
    moved = track(5)
    assert np.allclose(moved.speed, rotation_speed(moved.rotation))
    matrices = rotation_matrices(moved.rotation)
    cosine = (np.einsum("nij,nij->n", matrices[1:], matrices[:-1]) - 1) / 2
    assert np.allclose(rotation_speed(moved.rotation, 1)[1:], np.rad2deg(np.arccos(np.clip(cosine, -1, 1))), atol=1e-3)
    assert len(rotation_speed(yaw[:1])) == 1


def test_speeds_are_spread_and_poses_stay_in_range():
    tracks = [track(seed) for seed in range(60)]
    levels = np.array([moved.speed.mean() for moved in tracks])
    assert levels.min() < 0.25 and levels.max() > 1.7 and 0.1 < levels.min() and levels.max() < 2.8
    assert np.log(levels).std() > 0.6
    rotation = np.stack([moved.rotation for moved in tracks])
    assert (np.abs(rotation).max((0, 1)) <= synthetic.POSE_LIMITS).all()
    assert (np.abs(rotation).max((0, 1)) > 0.6 * synthetic.POSE_LIMITS).all()
    jumps = np.abs(np.diff(rotation, 2, axis=1)).max()
    assert jumps < 2.5  # smooth motion
    assert abs(track(3, 250, 50).speed.mean() / levels[3] - 0.5) < 0.1  # degrees per frame halve at twice the rate


def test_heads_may_follow_the_voice():
    opening = np.clip(np.sin(np.arange(250) / 8), 0, 1)

    def drawn(seed, follow):
        return Track.sample(np.random.default_rng([seed, 1]), 250, 25, opening, follow)

    free, tied = ([drawn(seed, follow) for seed in range(20)] for follow in (0, 1))
    assert np.allclose([one.speed.mean() for one in free], [one.speed.mean() for one in tied], rtol=0.05)
    still = [rotation_speed(one.rotation, 1)[opening == 0] for one in tied]
    assert max(speeds[1:].max() for speeds in still) < 0.05 < min(one.speed.mean() for one in tied)
    silent = Track.sample(np.random.default_rng([0, 1]), 250, 25, np.zeros(250), 1)
    assert np.array_equal(silent.rotation, free[0].rotation)  # nothing to follow


@pytest.mark.parametrize("seed", range(6))
def test_heads_may_move_less(seed):
    full, calm = (Track.sample(np.random.default_rng([seed, 1]), 250, 25, head_motion=factor) for factor in (1.0, 0.2))
    assert np.isclose(calm.speed.mean(), 0.2 * full.speed.mean(), rtol=0.02)
    assert np.allclose(np.ptp(calm.rotation, axis=0), 0.2 * np.ptp(full.rotation, axis=0), rtol=0.02)
    middle = (calm.rotation - 0.2 * full.rotation) / 0.8  # from which all angles are 0.2 times as far
    assert np.ptp(middle, axis=0).max() < 0.2 * np.ptp(full.rotation, axis=0).min()
    assert (full.rotation.min(0) < middle.mean(0)).all() and (middle.mean(0) < full.rotation.max(0)).all()
    assert np.allclose(calm.shift, 0.2 * full.shift) and np.array_equal(calm.blink, full.blink)


def test_record_contains_what_was_drawn():
    record = synthetic.make_record(7, seconds=1.0, size=64, fps=25)
    frames = mp4.decode_video(record.video, 0, 25)
    assert frames.shape == (25, 64, 64, 3) and record.audio.shape == (16000,) and record.audio.dtype == np.int16
    state = State(*record.rotation[12])
    assert np.allclose(face_box(Identity.sample(7), state, 64), record.boxes[12], atol=0.1 * 64)
    person, moved = Identity.sample(7), Track.sample(np.random.default_rng([7, 1]), 25, 25, record.mouth[:, 0])
    drawn = render(person, moved.state(12, record.mouth[12]), 64)
    assert difference(frames[12], drawn) < 6
    assert np.array_equal(record.appearance, person.appearance)


def test_record_is_deterministic(monkeypatch):
    seen = []
    monkeypatch.setattr(synthetic, "encode_video", lambda frames, fps: seen.append(frames) or b"")
    for seed in (0, 1):
        first, second = (synthetic.make_record(seed, seconds=1.0, size=64) for _ in range(2))
        assert np.array_equal(seen[-1], seen[-2]) and np.array_equal(first.audio, second.audio)
        assert np.array_equal(first.mouth, second.mouth) and np.array_equal(first.boxes, second.boxes)
    assert not np.array_equal(seen[0], seen[2])


def test_babble_is_audible_and_does_not_move_the_mouth():
    alone, among, other = (synthetic.make_record(7, seconds=2, size=32, babble=share) for share in (0, 0.5, 1))
    assert np.array_equal(alone.mouth, among.mouth) and np.array_equal(alone.rotation, among.rotation)
    own, mixed, strange = (record.audio / np.float32(32767) for record in (alone, among, other))
    assert abs(np.corrcoef(own, strange)[0, 1]) < 0.1
    assert np.allclose(mixed, np.sqrt(0.5) * (own + strange), atol=1e-4)


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["prepare", "synthetic", *arguments])
    args.main(args)


def test_prepare_writes_two_splits_of_different_people(tmp_path):
    options = ("--seconds", "1", "--size", "32", "--workers", "1", "--follow", "1", "--babble", "0.5")
    run("--output", str(tmp_path / "set"), "--records", "3", "--held-out", "2", *options)
    splits = [records.open_records(tmp_path / "set", split) for split in ("train", "validation")]
    people = [{source[i]["id"] for i in range(len(source))} for source in splits]
    assert [len(ids) for ids in people] == [3, 2] and not people[0] & people[1]
    seed = int(splits[0][0]["id"].rpartition("-")[2])
    free, tied = (synthetic.make_record(seed, seconds=1, size=32, follow=follow).rotation for follow in (0, 1))
    assert np.array_equal(splits[0][0]["rotation"], tied) and not np.array_equal(free, tied)
    heard = synthetic.make_record(seed, seconds=1, size=32, babble=0.5).audio
    assert np.array_equal(splits[0][0]["audio"], heard)


def test_workers_keep_the_order():
    assert list(map_in_order(abs, range(-6, 0), 2)) == list(map_in_order(abs, range(-6, 0), 1))


def negative_or_killed(seed):
    if seed == 5:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory is short
    return -seed


@pytest.mark.slow
def test_killed_worker_is_reported_on_one_line():
    made = map_in_order(negative_or_killed, range(8), 2)
    assert next(made) == 0
    with pytest.raises(OSError, match="SIGKILL.*fewer workers") as caught:
        list(made)
    assert "\n" not in str(caught.value) and not multiprocessing.active_children()


def test_records_are_made_on_demand_and_workers_are_stopped():
    seeds = itertools.count()
    made = map_in_order(abs, seeds, 2)
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    assert multiprocessing.active_children() and next(seeds) <= 3 + 2 * 2
    made.close()  # as an interruption does
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    "option, value",
    [
        ("--records", "0"),
        ("--workers", "0"),
        ("--size", "33"),
        ("--seconds", "0"),
        ("--follow", "1.5"),
        ("--babble", "-1"),
        ("--head-motion", "0"),
        ("--head-motion", "2"),
    ],
)
def test_error_names_the_bad_option(tmp_path, option, value):
    with pytest.raises(ValueError, match=option):
        run("--output", str(tmp_path / "set"), option, value)
    assert not (tmp_path / "set").exists()


def test_error_names_the_bad_argument():
    with pytest.raises(ValueError, match="-1"):
        Identity.sample(-1)
    with pytest.raises(ValueError, match="size 4"):
        render(Identity.sample(0), State(), 4)
    with pytest.raises(ValueError, match="1 frames"):
        Track.sample(np.random.default_rng(0), 1, 25)
