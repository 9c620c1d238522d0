"""Shots: finds the cuts of a video, the usable frames, and the spans of frames that become records."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from emo_jax.data.transforms import Window
from emo_jax.faces.analyzer import FaceAnalyzer
from emo_jax.faces.boxes import Box

SAME_SCENE_CORRELATION = 0.8  # brightness correlation above which two frames show the same scene, if differently lit
CUT_DIFFERENCE = 8.0  # minimum mean change of brightness at a cut, of 255
CUT_MOTION_RATIO = 3.0  # minimum ratio to the usual change of the previous frames, so that fast motion is not a cut
MIN_BRIGHTNESS, MAX_BRIGHTNESS = 28.0, 245.0  # mean brightness of a face, of 255
MIN_SHARPNESS = 12.0  # variance of the Laplacian of a face that is scaled to SHARPNESS_SIDE pixels
SHARPNESS_SIDE = 96
MIN_RATE = 8.0  # distinct frames per second below which a span is rejected
LOW_RATE = 20.0  # distinct frames per second below which a record is flagged
SHORT_SECONDS = 2.5  # below it, the reference of a clip of 12 frames can be nearer than one second to the clip
MEDIAN_FRAMES = 7  # window of the running medians: shorter changes of brightness, sharpness or face count are noise
FACE_HEIGHT = 0.54  # height of the face in the window, as in the portraits of `emo generate`
FACE_CENTER = (0.5, 0.53)  # center of the face in the window's width and height, likewise


@dataclasses.dataclass(frozen=True)
class Rules:
    """Requirements for a record.

    Attributes:
        seconds: approximate length of a record.
        min_seconds: minimum length of a record.
        min_face: minimum height of the face in pixels of the source.
        size: shorter side of the frames of the record in pixels.
        aspect: width / height of these frames.
    """

    seconds: float = 10.0
    min_seconds: float = 2.0
    min_face: float = 64.0
    size: int = 512
    aspect: float = 1.0

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(height, width) of the frames of the record in pixels, both even."""
        longer = 2 * round(self.size * max(self.aspect, 1 / self.aspect) / 2)
        return (self.size, longer) if self.aspect >= 1 else (longer, self.size)


@dataclasses.dataclass
class Measurements:
    """Measurements of the N frames of a video.

    Attributes:
        cut: (N,) bool, the frame starts a new shot.
        fresh: (N,) bool, the frame differs from the previous one.
        count: (N,) int, number of faces whose size is close to that of the main face.
        box: (N, 4) box of the main face; see `Face` for this and the following three.
        rotation: (N, 3) yaw, pitch and roll.
        confidence: (N,) confidence of the rotation.
        landmarks: (N, P, 2) landmarks; P is 0 if the analyzer has none.
        luma: (N,) mean brightness of the face, of 255.
        sharpness: (N,) sharpness of the face, see MIN_SHARPNESS.
    """

    cut: np.ndarray
    fresh: np.ndarray
    count: np.ndarray
    box: np.ndarray
    rotation: np.ndarray
    confidence: np.ndarray
    landmarks: np.ndarray
    luma: np.ndarray
    sharpness: np.ndarray

    def __len__(self) -> int:
        return len(self.cut)


class CutDetector:
    """Detects cuts: a frame starts a new shot if it differs much, more than usual, and in structure.

    This is our own because scenedetect 0.7.2 (PySceneDetect) depends on the distribution opencv-python, which cannot be
    installed beside the pinned opencv-python-headless < 5 without breaking cv2.

    A flash is recognized one frame later: `was_flash` then says that the last reported cut was none.
    """

    def __init__(self):
        """Starts before the first frame."""
        self._previous: np.ndarray | None = None
        self._second_previous: np.ndarray | None = None
        self._changes: list[float] = []
        self._cut = self.was_flash = False

    def __call__(self, image: np.ndarray) -> tuple[bool, bool]:
        """Processes the next frame.

        Args:
            image: (height, width, 3) uint8 RGB.

        Returns:
            Whether the frame starts a new shot, and whether it differs from the previous frame.
        """
        small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
        luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
        second_previous, previous = self._second_previous, self._previous
        self._second_previous, self._previous = previous, luma
        if previous is None:
            return True, True
        self.was_flash = (
            self._cut and second_previous is not None and _correlation(luma, second_previous) >= SAME_SCENE_CORRELATION
        )
        change = float(np.abs(luma - previous).mean())
        usual = float(np.median(self._changes)) if self._changes else 0.0
        large = change > max(CUT_DIFFERENCE, CUT_MOTION_RATIO * usual)
        self._cut = large and not self.was_flash and _correlation(luma, previous) < SAME_SCENE_CORRELATION
        if not self.was_flash:
            self._changes = [] if self._cut else [*self._changes[-12:], change]
        return self._cut, change > 0


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the Pearson correlation of two images; 0 if one of them is constant."""
    first, second = first - first.mean(), second - second.mean()
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float((first * second).sum()) / norm if norm > 1e-3 else 0.0


class Meter:
    """Measures the frames of a video, which are added in order."""

    def __init__(self, analyzer: FaceAnalyzer):
        """Takes the analyzer that finds the faces."""
        self._analyzer, self._detect_cut = analyzer, CutDetector()
        self._rows: list[tuple] = []
        self._landmarks: list[np.ndarray | None] = []

    def add(self, image: np.ndarray) -> None:
        """Measures the next frame, (height, width, 3) uint8 RGB."""
        cut, fresh = self._detect_cut(image)
        if self._detect_cut.was_flash:
            self._rows[-1] = (False, *self._rows[-1][1:])
        if cut:
            self._analyzer.reset()
        faces = self._analyzer.detect(image)
        self._landmarks.append(faces[0].landmarks if faces else None)
        if not faces:
            self._rows.append((cut, fresh, 0, (0.0,) * 4, (0.0,) * 3, 0.0, 0.0, 0.0))
            return
        main = faces[0]
        quality = _brightness_and_sharpness(image, main.box)
        self._rows.append((cut, fresh, len(faces), main.box, main.rotation, main.confidence, *quality))

    def measurements(self) -> Measurements:
        """Returns the measurements of all frames."""
        shapes = dict(cut=(), fresh=(), count=(), box=(4,), rotation=(3,), confidence=(), luma=(), sharpness=())
        columns = list(zip(*self._rows, strict=True)) or [()] * len(shapes)
        dtypes: dict[str, type] = dict(cut=bool, fresh=bool, count=int)
        points = next((len(landmarks) for landmarks in self._landmarks if landmarks is not None), 0)
        missing = np.zeros((points, 2), np.float32)
        landmarks = [missing if face is None else face for face in self._landmarks]
        return Measurements(
            landmarks=np.array(landmarks, np.float32).reshape(len(landmarks), points, 2),
            **{
                name: np.array(column, dtypes.get(name, np.float64)).reshape(-1, *shape)
                for (name, shape), column in zip(shapes.items(), columns, strict=True)
            },
        )


def _brightness_and_sharpness(image: np.ndarray, box: Box) -> tuple[float, float]:
    x0, y0, x1, y1 = (max(0, round(value)) for value in box)
    face = image[y0:y1, x0:x1]
    if min(face.shape[:2]) < 2:
        return 0.0, 0.0
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    method = cv2.INTER_AREA if min(grey.shape) > SHARPNESS_SIDE else cv2.INTER_LINEAR
    scaled = cv2.resize(grey, (SHARPNESS_SIDE, SHARPNESS_SIDE), interpolation=method)
    return float(grey.mean()), float(cv2.Laplacian(scaled, cv2.CV_64F).var())


def rejection_reasons(measurements: Measurements, rules: Rules) -> np.ndarray:
    """Returns (N,) object: the reason why each frame cannot be used, "" if it can."""
    height = measurements.box[:, 3] - measurements.box[:, 1]
    columns = np.stack([measurements.count, height, measurements.luma, measurements.sharpness], 1)
    count, height, luma, sharpness = _running_medians(columns, measurements.cut).T
    reasons = np.full(len(measurements), "", object)
    reasons[sharpness < MIN_SHARPNESS] = "face too blurred"
    reasons[luma < MIN_BRIGHTNESS] = "face too dark"
    reasons[luma > MAX_BRIGHTNESS] = "face too bright"
    reasons[height < rules.min_face] = "face too small"
    reasons[count > 1.5] = "several faces"
    reasons[measurements.count == 0] = "no face"
    return reasons


def _running_medians(values: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Returns running medians (N, K) over the rows with a face (first column above 0), within each shot."""
    out = values.astype(np.float64)
    present = values[:, 0] > 0
    shot = np.cumsum(cut)
    for k in np.flatnonzero(present):
        window = slice(max(0, k - MEDIAN_FRAMES // 2), k + MEDIAN_FRAMES // 2 + 1)
        rows = values[window][present[window] & (shot[window] == shot[k])]
        out[k] = np.median(rows, axis=0)
    return out


@dataclasses.dataclass(frozen=True)
class Span:
    """Frames of a video that become one record.

    Attributes:
        start: first frame.
        stop: frame after the last one.
        window: the crop window.
        flags: warnings for the record.
    """

    start: int
    stop: int
    window: Window
    flags: tuple[str, ...]


def choose_spans(
    measurements: Measurements, rules: Rules, fps: float, frame_size: tuple[int, int], borders: tuple[int, ...] = ()
) -> tuple[list[Span], dict[str, int]]:
    """Chooses the spans of a video that become records.

    A run of frames of one shot with exactly one usable face is divided into equal spans of about `rules.seconds`.

    Args:
        measurements: measurements of all frames.
        rules: requirements for a record.
        fps: frames per second.
        frame_size: (height, width) of the source.
        borders: further frames at which a span must end.

    Returns:
        The spans, and {reason: number of frames left out}.
    """
    reasons = rejection_reasons(measurements, rules)
    starts = measurements.cut.copy()
    starts[[frame for frame in borders if 0 <= frame < len(starts)]] = True
    chosen = []
    for start, stop in _usable_runs(reasons == "", starts):
        parts = max(1, round((stop - start) / (rules.seconds * fps)))
        edges = np.linspace(start, stop, parts + 1).round().astype(int)
        for first, last in zip(edges[:-1], edges[1:], strict=True):
            span = _make_span(measurements, rules, fps, frame_size, int(first), int(last))
            if isinstance(span, Span):
                chosen.append(span)
            else:
                reasons[first:last] = span
    names, counts = np.unique(reasons[reasons != ""].astype(str), return_counts=True)
    return chosen, dict(zip(names.tolist(), counts.tolist(), strict=True))


def _usable_runs(usable: np.ndarray, starts: np.ndarray) -> list[tuple[int, int]]:
    """Returns [start, stop) of the maximal runs of usable frames that contain no other start of a shot."""
    edges = np.flatnonzero(starts | np.diff(usable, prepend=False)).tolist() + [len(usable)]
    return [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if usable[a]]


def _make_span(
    measurements: Measurements, rules: Rules, fps: float, frame_size: tuple[int, int], start: int, stop: int
) -> Span | str:
    """Returns the span, or the reason why it cannot be used."""
    if stop - start < math.ceil(rules.min_seconds * fps - 1e-6):
        return f"shorter than {rules.min_seconds:g} s"
    rate = measurements.fresh[start:stop].mean() * fps
    if rate < MIN_RATE:
        return f"fewer than {MIN_RATE:g} different frames a second"
    window = fit_window(measurements.box[start:stop], *frame_size, rules.aspect)
    if window is None:
        return "face moves out of any crop window"
    flags = ["low-fps"] if rate < LOW_RATE else []
    if stop - start < SHORT_SECONDS * fps:
        flags.append("short")
    return Span(start, stop, window, (*flags, *window_flags(window, rules)))


def window_flags(window: Window, rules: Rules) -> list[str]:
    """Returns the warnings for a record that is cropped to a window."""
    return ["enlarged"] if min(window[2:]) * 1.5 < rules.size else []


def crop_window(image: np.ndarray, window: Window, shape: tuple[int, int]) -> np.ndarray:
    """Crops an image (height, width, 3) uint8 to a window and resizes it to `shape`, (height, width)."""
    top, left, height, width = window
    method = cv2.INTER_AREA if height > shape[0] else cv2.INTER_CUBIC
    return cv2.resize(image[top : top + height, left : left + width], shape[::-1], interpolation=method)


def window_points(points: np.ndarray, window: Window, shape: tuple[int, int]) -> np.ndarray:
    """Returns points (..., x and y in turn) of an image as points of its crop by `crop_window`."""
    top, left, height, width = window
    turns = points.shape[-1] // 2
    return (points - (left, top) * turns) * ((shape[1] / width, shape[0] / height) * turns)


def fit_window(boxes: np.ndarray, height: int, width: int, aspect: float = 1.0) -> Window | None:
    """Fits a crop window that contains a moving face with a margin.

    The face fills FACE_HEIGHT of the window and is centered at FACE_CENTER, as far as the borders of the frame allow.

    Args:
        boxes: (frames, 4) face boxes in pixels.
        height: height of the frame.
        width: width of the frame.
        aspect: width / height of the window.

    Returns:
        The window; None if no window in the frame contains nine tenths of the range of the face.
    """
    low, high = np.quantile(boxes[:, :2], 0.02, axis=0), np.quantile(boxes[:, 2:], 0.98, axis=0)
    low, high = np.maximum(low, 0), np.minimum(high, (width, height))
    extent = float(max((high - low) / (aspect, 1)))
    largest = min(height, width / aspect)
    if extent > largest / 0.9:
        return None
    face_height = float(np.median(boxes[:, 3] - boxes[:, 1]))
    rows = math.floor(min(max(face_height / FACE_HEIGHT, 1.1 * extent), largest))
    columns = min(round(rows * aspect), width)
    center = (low + high) / 2
    left = min(max(center[0] - FACE_CENTER[0] * columns, 0), width - columns)
    top = min(max(center[1] - FACE_CENTER[1] * rows, 0), height - rows)
    return round(top), round(left), rows, columns
