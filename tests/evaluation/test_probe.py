"""The measuring network: shapes, files, and the accuracy of the bundled one."""

import numpy as np
import pytest

from emo_jax.evaluation import probe, train_probe
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import face_box, render


@pytest.mark.slow
def test_size_and_parts():
    import jax

    params = probe.fresh_params()
    assert sum(a.size for a in jax.tree.leaves(params["weights"])) <= 400_000
    parts = probe.split(np.arange(probe.TARGETS))
    assert [len(part) for part in parts.values()] == list(probe.PARTS.values())
    assert np.concatenate(list(parts.values())).tolist() == list(range(probe.TARGETS))


@pytest.mark.slow
def test_measure_keeps_leading_axes_and_does_not_depend_on_the_batch():
    params = probe.fresh_params(1)
    frames = np.random.default_rng(0).integers(0, 256, (3, 25, 128, 128, 3), dtype=np.uint8)
    found = probe.measure(params, frames)
    shapes = {name: value.shape for name, value in found.items()}
    assert shapes["opening"] == shapes["width"] == (3, 25) and shapes["rotation"] == (3, 25, 3)
    assert shapes["centre"] == shapes["size"] == (3, 25, 2) and shapes["identity"] == (3, 25, probe.IDENTITY)
    alone = probe.measure(params, frames[2, 24])
    assert np.allclose(alone["rotation"], found["rotation"][2, 24], atol=1e-4)
    assert not np.allclose(found["rotation"][2, 23], found["rotation"][2, 24], atol=1e-4)


def test_frames_of_another_size_or_type_raise():
    with pytest.raises(ValueError, match="128, 128, 3"):
        probe.measure({}, np.zeros((2, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        probe.measure({}, np.zeros((2, 128, 128, 3), np.float32))


@pytest.mark.slow
def test_saved_probe_gives_equal_measures(tmp_path):
    params = probe.fresh_params(2) | {"mean": np.full(probe.TARGETS, 3, np.float32)}
    probe.save_probe(tmp_path / "probe.safetensors", params)
    frames = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    before = probe.measure(params, frames)
    after = probe.measure(probe.load_probe(tmp_path / "probe.safetensors"), frames)
    assert np.allclose(before["rotation"], after["rotation"], atol=0.02)
    assert [path.name for path in tmp_path.iterdir()] == ["probe.safetensors"]


def test_error_names_the_bad_file(tmp_path):
    with pytest.raises(ValueError, match="missing"):
        probe.load_probe(tmp_path / "missing")
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(ValueError, match="text"):
        probe.load_probe(tmp_path / "text")


def test_truth_follows_crop_and_mirror():
    record = {
        "boxes": np.array([[40.0, 30.0, 104.0, 126.0]]),
        "rotation": np.array([[10.0, -5.0, 3.0]]),
        "mouth": np.array([[0.7, 0.4]]),
    }
    zero, window = np.array([0]), np.array([[6, 8]])
    plain = probe.split(train_probe.true_measures(record, zero, window, np.array([False])))
    assert plain["place"][0] == pytest.approx([0.5, 72 / 128, 0.5, 0.75])
    assert plain["rotation"][0].tolist() == [10, -5, 3] and plain["mouth"][0] == pytest.approx([0.7, 0.4])
    mirrored = probe.split(train_probe.true_measures(record, zero, np.array([[6, 0]]), np.array([True])))
    assert mirrored["place"][0] == pytest.approx([1 - 72 / 128, 72 / 128, 0.5, 0.75])
    assert mirrored["rotation"][0].tolist() == [-10, -5, -3]


def test_degrading_keeps_the_content():
    image = render(Identity.sample(5), State(opening=0.5), 160)[16:144, 16:144]
    rng = np.random.default_rng(0)
    degraded = [train_probe.degrade(rng, image) for _ in range(30)]
    assert all(s.dtype == np.uint8 and s.shape == image.shape for s in degraded)
    errors = [np.abs(s.astype(int) - image).mean() for s in degraded]
    assert max(errors) < 30 and max(errors) > 3


def _faces(size=160, edge=16):
    """Renders of three people, mouth and pose varied, with the truth: opening, yaw, centre in pixels, person."""
    rows = []
    for seed in (3 << 23, (3 << 23) + 1, (3 << 23) + 2):
        identity = Identity.sample(seed)
        for opening, yaw in ((0.0, -20), (0.3, -7), (0.6, 7), (0.9, 20)):
            state = State(yaw=yaw, opening=opening)
            box = face_box(identity, state, size) - edge
            frame = render(identity, state, size)[edge : size - edge, edge : size - edge]
            rows.append((frame, opening, yaw, (box[:2] + box[2:]) / 2, seed))
    return [np.array(column) for column in zip(*rows, strict=True)]


def test_the_bundled_network_measures_people_it_has_not_seen():
    frames, opening, yaw, centre, person = _faces()
    params = probe.load_probe()
    found = probe.measure(params, frames)
    assert np.corrcoef(found["opening"], opening)[0, 1] > 0.98
    assert np.abs(found["rotation"][:, 0] - yaw).mean() < 3
    assert np.abs(128 * found["centre"] - centre).mean() < 2.5
    far = np.linalg.norm(found["identity"][:, None] - found["identity"], axis=-1) + 1e6 * np.eye(len(frames))
    assert (person[far.argmin(1)] == person).all()


def test_disguised_people_change_all_but_their_face():
    views = train_probe.disguised_views([3 << 22], 3)
    corners = views[0, :, :8, :8].astype(int)
    assert views.shape == (1, 3, 128, 128, 3) and np.abs(corners[0] - corners[1]).mean() > 10
    found = probe.measure(probe.load_probe(), train_probe.disguised_views(range(3 << 22, (3 << 22) + 6), 3))
    near = found["identity"][:, 1:, None] - found["identity"][:, 0]
    assert (np.linalg.norm(near, axis=-1).argmin(-1) == np.arange(6)[:, None]).mean() > 0.9
