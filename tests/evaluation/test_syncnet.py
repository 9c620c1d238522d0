"""SyncNet against torch and python_speech_features, its scores on shifted features, and its crop of a face."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from emo_jax.cli import main as cli
from emo_jax.evaluation import syncnet
from emo_jax.faces import models
from tests.parity import metric_cases

FACES, WINDOWS, FEATURES, SOUND = metric_cases.syncnet_inputs()


@pytest.fixture(scope="module")
def weights():
    return metric_cases.syncnet_weights(metric_cases.NARROW)


@pytest.mark.parametrize("name, forward, inputs", [
    ("syncnet_lip", syncnet.lip_features, FACES), ("syncnet_sound", syncnet.sound_features, WINDOWS),
])  # fmt: skip
def test_features_are_those_of_torch(weights, name, forward, inputs):
    found = np.asarray(jax.jit(forward)(syncnet.convert(weights), inputs))
    expected = np.load(metric_cases.RECORDED)[name]
    assert found.shape == expected.shape and np.ptp(expected) > 0.1
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_mfcc_are_those_of_python_speech_features():
    found, expected = syncnet.mfcc(SOUND), np.load(metric_cases.RECORDED)["mfcc"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.isfinite(syncnet.mfcc(np.zeros(8000))).all()


def test_scores_are_those_of_torch():
    found = syncnet.score(*FEATURES)
    confidence, distance, offset = np.load(metric_cases.RECORDED)["syncnet_score"]
    np.testing.assert_allclose((found.confidence, found.distance), (confidence, distance), rtol=1e-5)
    assert found.offset == -offset == 4  # frames by which the sound is late


def test_weights_of_another_network_are_refused(weights, tmp_path):
    save_file({name: a for name, a in weights.items() if name != "netfcaud.1.running_var"}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors.*netfcaud\.1\.running_var"):
        syncnet.SyncNet(tmp_path / "a.safetensors")


@pytest.mark.slow
def test_a_video_is_scored_in_chunks(weights, tmp_path, monkeypatch):
    save_file(weights, tmp_path / "net.safetensors")
    net = syncnet.SyncNet(tmp_path / "net.safetensors")
    rng = np.random.default_rng(0)
    frames, boxes = rng.integers(0, 256, (33, 80, 90, 3), np.uint8), np.tile([20.0, 10, 60, 58], (33, 1))
    boxes[7] = np.nan
    seen = []
    monkeypatch.setattr(syncnet, "score", lambda lips, sound: seen.append((lips, sound)))
    net(iter(frames), boxes, rng.uniform(-0.5, 0.5, 33 * 640))
    (lips, sound), params = seen[0], syncnet.convert(weights)
    assert len(lips) == len(sound) == 28
    faces = np.stack([syncnet.crop_face(frames[k], (40.0, 34, 24)) for k in range(20, 32)])
    np.testing.assert_allclose(lips[20:], jax.jit(syncnet.lip_features)(params, faces), rtol=1e-3, atol=1e-3)
    assert net(iter(frames), np.full((33, 4), np.nan), np.ones(33 * 640)) is None
    assert net(iter(frames), boxes, np.zeros(0)) is None


def test_the_crop_is_below_the_face_and_filled_up_with_grey():
    image = np.zeros((100, 100, 3), np.uint8)
    image[50:, :, 0] = 255  # red below the middle
    crop = syncnet.crop_face(image, (50.0, 50.0, 20.0))  # rows 30 to 86, columns 22 to 78
    assert crop.shape == (224, 224, 3) and (crop[75, 0] == (0, 0, 0)).all() and (crop[90, 0] == (0, 0, 255)).all()
    assert (syncnet.crop_face(image, (0.0, 50.0, 20.0))[0, 0] == 110).all()


def test_boxes_are_smoothed_over_gaps_and_outliers():
    boxes = np.tile([10.0, 20, 30, 60], (30, 1))
    boxes[5], boxes[12] = np.nan, [50, 50, 60, 60]
    np.testing.assert_allclose(syncnet.smooth_boxes(boxes), np.tile([20, 40, 20.0], (30, 1)))


def test_models_of_metrics_are_downloaded_by_name(tmp_path, monkeypatch, capsys):
    wanted = []
    monkeypatch.setattr(models, "download", lambda model, folder, tick: wanted.append(model.name) or tmp_path)
    assert cli.main(["models", "download", "syncnet", "inception"]) == 0 and wanted == ["syncnet", "inception"]
    assert cli.main(["models", "download"]) == 0 and wanted[2:] == [model.name for model in models.MODELS]
    capsys.readouterr()
    assert cli.main(["models", "download", "vgg"]) == 2 and "'vgg'" in capsys.readouterr().err
    assert cli.main(["models", "list", "--folder", str(tmp_path)]) == 0
    assert "syncnet_v2.model" in capsys.readouterr().out
