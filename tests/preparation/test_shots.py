"""Cuts of videos, usable frames and the square crop window."""

import numpy as np
import pytest

from emo_jax.preparation import shots
from emo_jax.preparation.shots import CutDetector, Measurements, Meter, Rules, choose_spans, fit_window


def make_measurements(length=200, /, **changes):
    """Returns measurements of a usable face 100 pixels high, with changes name=(rows, value)."""
    fields = dict(
        cut=np.arange(length) == 0,
        fresh=np.ones(length, bool),
        count=np.ones(length, int),
        box=np.tile([100.0, 100.0, 180.0, 200.0], (length, 1)),
        rotation=np.zeros((length, 3)),
        confidence=np.full(length, 0.2),
        landmarks=np.zeros((length, 0, 2), np.float32),
        luma=np.full(length, 120.0),
        sharpness=np.full(length, 200.0),
    )
    for name, (rows, value) in changes.items():
        fields[name][rows] = value
    return Measurements(**fields)


class NoFaceAnalyzer:
    """A face analyzer that finds no face."""

    resets = 0

    def reset(self):
        self.resets += 1

    def detect(self, image):
        return []


def spans(measurements, **options):
    rules = Rules(**{"seconds": 4.0, "min_seconds": 1.0, "min_face": 64.0, "size": 128} | options)
    chosen, dropped = choose_spans(measurements, rules, 25, (400, 600))
    return [(span.start, span.stop) for span in chosen], dropped


def scene(seed, count):
    """Returns frames of color patches that move by two pixels per frame."""
    rng = np.random.default_rng(seed)
    wide = rng.integers(0, 256, (6, 40, 3)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
    return [wide[:, 2 * k : 2 * k + 128] for k in range(count)]


def test_cuts_are_detected_and_motion_is_not():
    detector = CutDetector()
    frames = scene(0, 30) + scene(1, 30) + scene(2, 30)
    results = [detector(frame) for frame in frames]
    assert [k for k, (cut, _) in enumerate(results) if cut] == [0, 30, 60]
    assert all(fresh for _, fresh in results)


@pytest.mark.parametrize("kind", ["fade", "flicker"])
def test_changing_light_is_not_a_cut(kind):
    frame = scene(3, 1)[0] / 255
    light = np.linspace(1, 0.2, 40) if kind == "fade" else np.tile([1.0, 0.7], 20)
    detector = CutDetector()
    assert sum(detector((255 * frame * level).astype(np.uint8))[0] for level in light) == 1


def test_flash_is_not_a_cut():
    frames = [frame for frame in scene(0, 6) for _ in range(2)]
    frames[6] = np.maximum(frames[6], 240)
    meter = Meter(NoFaceAnalyzer())
    for frame in [*frames, *scene(1, 3)]:
        meter.add(frame)
    assert np.flatnonzero(meter.measurements().cut).tolist() == [0, 12]


def test_analyzer_is_reset_at_cuts():
    meter = Meter(analyzer := NoFaceAnalyzer())
    for frame in [*scene(0, 5), *scene(1, 5)]:
        meter.add(frame)
    assert analyzer.resets == 2  # the first frame starts a shot as well


def test_repeated_frames_are_not_fresh():
    detector = CutDetector()
    frames = scene(0, 4)
    assert [detector(frames[k // 2])[1] for k in range(8)] == [True, False] * 4


def test_long_run_is_divided_into_equal_spans():
    assert spans(make_measurements(200)) == ([(0, 100), (100, 200)], {})
    assert spans(make_measurements(199)) == ([(0, 100), (100, 199)], {})
    assert spans(make_measurements(120)) == ([(0, 120)], {})


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("count", 0, "no face"),
        ("count", 2, "several faces"),
        ("luma", 10, "face too dark"),
        ("luma", 252, "face too bright"),
        ("sharpness", 3, "face too blurred"),
        ("box", (100, 100, 150, 160), "face too small"),
    ],
)
def test_unusable_frames_end_a_span(name, value, reason):
    kept, dropped = spans(make_measurements(**{name: (slice(90, 130), value)}))
    assert kept == [(0, 90), (130, 200)] and dropped == {reason: 40}


def test_short_failures_are_ignored_unless_the_face_is_missing():
    assert spans(make_measurements(count=(slice(90, 93), 2), luma=(slice(20, 23), 5))) == ([(0, 100), (100, 200)], {})
    kept, dropped = spans(make_measurements(count=(slice(90, 93), 0)))
    assert kept == [(0, 90), (93, 200)] and dropped == {"no face": 3}


def test_cuts_borders_and_short_remainders():
    assert spans(make_measurements(cut=([0, 110], True)))[0] == [(0, 110), (110, 200)]
    kept, dropped = spans(make_measurements(cut=([0, 190], True)))
    assert kept == [(0, 95), (95, 190)] and dropped == {"shorter than 1 s": 10}
    chosen, _ = choose_spans(make_measurements(), Rules(2.8, 1.0, 64, 128), 25, (400, 600), borders=(60,))
    assert [(span.start, span.stop) for span in chosen] == [(0, 60), (60, 130), (130, 200)]


def test_frozen_and_slow_videos():
    slow = make_measurements(fresh=(slice(None), np.arange(200) % 2 == 0))
    chosen, _ = choose_spans(slow, Rules(4.0, 1.0, 64, 128), 25, (400, 600))
    assert [span.flags for span in chosen] == [("low-fps",)] * 2
    assert spans(make_measurements(fresh=(slice(None), np.arange(200) % 12 == 0))) == (
        [],
        {"fewer than 8 different frames a second": 200},
    )


def test_short_spans_are_flagged():
    for length, flags in ((62, ("short",)), (63, ())):
        [span], _ = choose_spans(make_measurements(length), Rules(10, 1.0, 64, 128), 25, (400, 600))
        assert span.flags == flags


def test_enlarged_faces_are_flagged():
    chosen, _ = choose_spans(make_measurements(), Rules(10, 1.0, 64, 512), 25, (400, 600))
    assert chosen[0].window[2] < 512 / 1.5 and chosen[0].flags == ("enlarged",)
    chosen, _ = choose_spans(make_measurements(), Rules(10, 1.0, 64, 256), 25, (400, 600))
    assert chosen[0].flags == ()


def test_square_is_centered_on_the_face():
    top, left, height, side = fit_window(np.tile([300.0, 200, 380, 300], (9, 1)), 1000, 1000)
    assert side == height == int(100 / shots.FACE_HEIGHT)
    assert (340 - left) / side == pytest.approx(0.5, abs=0.01) and (250 - top) / side == pytest.approx(0.53, abs=0.01)


def test_square_stays_in_the_frame_and_contains_the_moving_face():
    boxes = np.array([[10.0, 5, 90, 105], [160, 5, 240, 105]])
    top, left, side, _ = fit_window(boxes, 300, 400)
    assert left <= 10 and top == 0 and left + side >= 240
    top, left, side, _ = fit_window(np.array([[300.0, 150, 390, 290]]), 300, 400)
    assert left + side == 400 and top + side <= 300


@pytest.mark.parametrize("aspect, frame", [(16 / 9, (1080, 1920)), (9 / 16, (1920, 1080)), (0.75, (1000, 1000))])
def test_windows_of_other_aspects_contain_the_face_in_its_height(aspect, frame):
    face = np.array([[400.0, 420, 560, 620]])
    top, left, height, width = fit_window(face, *frame, aspect)
    assert width / height == pytest.approx(aspect, abs=0.01)
    assert height == int(200 / shots.FACE_HEIGHT)
    assert 0 <= left <= 400 and left + width >= 560 and 0 <= top <= 420 and top + height >= 620
    shape = Rules(size=90, aspect=aspect).frame_shape
    assert min(shape) == 90 and shape[1] / shape[0] == pytest.approx(aspect, abs=0.02)
    points = shots.window_points(face, (top, left, height, width), shape)[0]
    assert (points[3] - points[1]) / shape[0] == pytest.approx(shots.FACE_HEIGHT, abs=0.01)
    assert (points[2] - points[0]) / (points[3] - points[1]) == pytest.approx(0.8, abs=0.02)  # not stretched


def test_a_face_wider_than_the_window_fits_none():
    wide = np.array([[100.0, 100, 900, 900]])
    assert fit_window(wide, 1000, 1000) is not None
    assert fit_window(wide, 1000, 1000, 9 / 16) is None


def test_face_that_crosses_a_wide_frame_fits_no_square():
    x = np.linspace(0, 880, 50)
    assert fit_window(np.stack([x, 0 * x + 20, x + 80, 0 * x + 120], 1), 200, 960) is None
    wide = make_measurements(
        box=(
            slice(None),
            np.stack([4 * np.arange(200), np.full(200, 50), 4 * np.arange(200) + 80, np.full(200, 150)], 1),
        )
    )
    assert choose_spans(wide, Rules(8, 1, 64, 128), 25, (200, 960)) == ([], {"face moves out of any crop window": 200})
