"""FID's Inception and FVD's I3D against torch, and the Frechet distance against scipy and closed forms."""

import cv2
import jax
import numpy as np
import pytest
import scipy.linalg

from emo_jax.evaluation import i3d, inception
from emo_jax.evaluation.frechet import frechet_distance
from tests.parity import metric_cases

NETWORKS = {"inception": (inception.convert, inception.features), "i3d": (i3d.convert, i3d.logits)}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_torch(name):
    convert, forward = NETWORKS[name]
    params = convert(metric_cases.weights(name, metric_cases.NARROW))
    found = np.asarray(jax.jit(forward)(params, metric_cases.inputs(name, full=False)))
    expected = np.load(metric_cases.RECORDED)[name]
    assert found.shape == expected.shape and np.ptp(expected) > 0.1
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_weights_without_a_tensor_are_refused():
    weights = metric_cases.weights("inception", metric_cases.NARROW)
    del weights["Mixed_7c.branch_pool.bn.running_var"]
    with pytest.raises(ValueError, match=r"Mixed_7c\.branch_pool\.bn\.running_var"):
        inception.convert(weights)


def pytorch_fid(first, second):
    """The distance by the matrix root of scipy."""
    means, covariances = [x.mean(0) for x in (first, second)], [np.cov(x.T) for x in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


def test_distance_is_that_of_the_matrix_root():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((2, 12, 12))
    first, second = rng.standard_normal((300, 12)) @ mix[0], rng.standard_normal((200, 12)) @ mix[1] + 0.5
    assert frechet_distance(first, second) == pytest.approx(pytorch_fid(first, second), rel=1e-9)


def test_distance_has_its_closed_forms():
    rng = np.random.default_rng(1)
    first = rng.standard_normal((50, 8))
    scale, shift = np.linspace(0.5, 2, 8), np.arange(8.0)
    assert abs(frechet_distance(first, first)) < 1e-12
    assert frechet_distance(first, first + shift) == pytest.approx((shift**2).sum())
    white = np.linalg.qr(first - first.mean(0))[0] * np.sqrt(49)  # covariance 1, mean 0
    assert frechet_distance(white, white * scale) == pytest.approx(((scale - 1) ** 2).sum())


def test_fewer_samples_than_features():
    rng = np.random.default_rng(2)
    first, second = rng.standard_normal((10, 64)), rng.standard_normal((15, 64))
    turn = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    assert abs(frechet_distance(first, first)) < 1e-10
    assert frechet_distance(first @ turn, second @ turn) == pytest.approx(frechet_distance(first, second))
    wide = frechet_distance(np.pad(first, ((0, 0), (0, 9))), np.pad(second, ((0, 0), (0, 9))))
    assert wide == pytest.approx(frechet_distance(first, second))


@pytest.mark.parametrize("shape", [(1, 8), (4, 7)])
def test_sets_that_cannot_be_compared(shape):
    with pytest.raises(ValueError, match="shapes"):
        frechet_distance(np.zeros((4, 8)), np.zeros(shape))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(np.zeros((4, 8)), np.full((4, 8), np.nan))


@pytest.mark.slow
def test_fid_grows_with_blur_noise_and_jpeg():
    """With random weights, the features still order the strengths of each fault."""
    rng = np.random.default_rng(3)
    images = [cv2.GaussianBlur(rng.integers(0, 256, (96, 96, 3), np.uint8), (0, 0), 2) for _ in range(24)]
    images = [cv2.normalize(image, np.empty_like(image), 0, 255, cv2.NORM_MINMAX) for image in images]
    params = inception.convert(metric_cases.weights("inception", metric_cases.NARROW))
    forward = jax.jit(inception.features)

    def distance(change):
        changed = [change(image) for image in images]
        sets = [np.asarray(forward(params, np.stack(x).astype(np.float32) / 127.5 - 1)) for x in (images, changed)]
        return frechet_distance(*sets)

    def noisy(strength):
        return lambda image: np.clip(image + strength * noise, 0, 255).astype(np.uint8)

    def jpeg(quality):
        return lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)

    noise = rng.standard_normal((96, 96, 3))
    blurs = [distance(lambda image, s=s: cv2.GaussianBlur(image, (0, 0), s)) for s in (0.7, 1.5, 3)]
    noises, jpegs = (
        [distance(change(s)) for s in levels] for change, levels in ((noisy, (4, 12, 36)), (jpeg, (80, 30, 5)))
    )
    assert abs(distance(lambda image: image)) < 1e-6
    for distances in (blurs, noises, jpegs):
        assert 0 < distances[0] < distances[1] < distances[2]
