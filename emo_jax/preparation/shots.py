"""Shots: where a video is cut, which frames of it can be used, and which stretches of those become records."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from emo_jax.faces.analyzer import FaceAnalyzer
from emo_jax.faces.boxes import Box

CUT_LIKENESS = 0.8  # correlation of two frames' brightness above which they show the same, in another light at most
CUT_DIFFERENCE = 8.0  # mean change of brightness at a cut, of 255
CUT_AGAINST_MOTION = 3.0  # times the usual change of the frames before: fast motion is no cut
DARK, BRIGHT = 28.0, 245.0  # mean brightness of a face, of 255
BLURRED = 12.0  # variance of the Laplacian of a face of SHARPNESS_SIDE pixels
SHARPNESS_SIDE = 96
FROZEN_RATE = 8.0  # distinct frames a second below which motion is lost
LOW_RATE = 20.0
STEADY = 7  # frames: shorter failures of brightness, sharpness or the count of faces are chance
FACE_HEIGHT = 0.54  # of the square, as `emo generate` crops a portrait
FACE_CENTRE = (0.5, 0.53)  # of the square's width and height, likewise


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a stretch must fulfil: lengths in seconds, sizes in pixels of the source."""

    seconds: float = 10.0
    min_seconds: float = 2.0
    min_face: float = 64.0
    size: int = 512


@dataclasses.dataclass
class Measurements:
    """What was seen in N frames of a video: one row per frame.

    cut: starts a new shot. fresh: differs from the frame before. count: faces near the main one's size. box, rotation,
    confidence, landmarks (N, P, 2): of the main face, see `Face`; P is 0 where there are none. luma: mean brightness of
    the face. sharpness: see BLURRED.
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
    """Tells for each frame whether it starts a new shot: the picture changes much, more than before, and in structure.

    A flash is no cut, which shows a frame later: `was_flash` then says that the cut told last was none.
    """

    def __init__(self):
        self._before = self._older = None
        self._usual: list[float] = []
        self._cut = self.was_flash = False

    def __call__(self, image: np.ndarray) -> tuple[bool, bool]:
        """(starts a new shot, differs at all from the frame before) for uint8 RGB (height, width, 3)."""
        small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
        luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
        older, before = self._older, self._before
        self._older, self._before = before, luma
        if before is None:
            return True, True
        self.was_flash = self._cut and older is not None and _likeness(luma, older) >= CUT_LIKENESS
        change = float(np.abs(luma - before).mean())
        usual = float(np.median(self._usual)) if self._usual else 0.0
        large = change > max(CUT_DIFFERENCE, CUT_AGAINST_MOTION * usual)
        self._cut = large and not self.was_flash and _likeness(luma, before) < CUT_LIKENESS
        if not self.was_flash:
            self._usual = [] if self._cut else [*self._usual[-12:], change]
        return self._cut, change > 0


def _likeness(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of two pictures; 0 where one is of a single grey."""
    first, second = first - first.mean(), second - second.mean()
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float((first * second).sum()) / size if size > 1e-3 else 0.0


class Meter:
    """Takes the frames of a video in order; `measurements` is what it saw."""

    def __init__(self, analyzer: FaceAnalyzer):
        self._analyzer, self._cuts, self._rows, self._landmarks = analyzer, CutDetector(), [], []

    def add(self, image: np.ndarray) -> None:
        """Measures uint8 RGB (height, width, 3)."""
        cut, fresh = self._cuts(image)
        if self._cuts.was_flash:
            self._rows[-1] = (False, *self._rows[-1][1:])
        if cut:
            self._analyzer.reset()
        faces = self._analyzer.detect(image)
        self._landmarks.append(faces[0].landmarks if faces else None)
        if not faces:
            self._rows.append((cut, fresh, 0, (0.0,) * 4, (0.0,) * 3, 0.0, 0.0, 0.0))
            return
        main = faces[0]
        look = _look(image, main.box)
        self._rows.append((cut, fresh, len(faces), main.box, main.rotation, main.confidence, *look))

    def measurements(self) -> Measurements:
        shapes = dict(cut=(), fresh=(), count=(), box=(4,), rotation=(3,), confidence=(), luma=(), sharpness=())
        columns = list(zip(*self._rows, strict=True)) or [()] * len(shapes)
        kinds = dict(cut=bool, fresh=bool, count=int)
        points = next((len(marks) for marks in self._landmarks if marks is not None), 0)
        missing = np.zeros((points, 2), np.float32)
        landmarks = [missing if marks is None else marks for marks in self._landmarks]
        return Measurements(
            landmarks=np.array(landmarks, np.float32).reshape(len(landmarks), points, 2),
            **{
                name: np.array(column, kinds.get(name, np.float64)).reshape(-1, *shape)
                for (name, shape), column in zip(shapes.items(), columns, strict=True)
            },
        )


def _look(image: np.ndarray, box: Box) -> tuple[float, float]:
    """(mean brightness, sharpness) of the face in the box."""
    x0, y0, x1, y1 = (max(0, round(value)) for value in box)
    face = image[y0:y1, x0:x1]
    if min(face.shape[:2]) < 2:
        return 0.0, 0.0
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    method = cv2.INTER_AREA if min(grey.shape) > SHARPNESS_SIDE else cv2.INTER_LINEAR
    scaled = cv2.resize(grey, (SHARPNESS_SIDE, SHARPNESS_SIDE), interpolation=method)
    return float(grey.mean()), float(cv2.Laplacian(scaled, cv2.CV_64F).var())


def faults(seen: Measurements, rules: Rules) -> np.ndarray:
    """(N,) object: why each frame cannot be used, "" where it can."""
    height = seen.box[:, 3] - seen.box[:, 1]
    usual = _medians(np.stack([seen.count, height, seen.luma, seen.sharpness], 1), seen.cut)
    found = seen.count > 0
    why = np.full(len(seen), "", object)
    why[usual[:, 3] < BLURRED] = "face too blurred"
    why[usual[:, 2] < DARK] = "face too dark"
    why[usual[:, 2] > BRIGHT] = "face too bright"
    why[usual[:, 1] < rules.min_face] = "face too small"
    why[usual[:, 0] > 1.5] = "several faces"
    why[~found] = "no face"
    return why


def _medians(values: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """(N, K) running medians over STEADY frames of the rows with a face, within each shot."""
    out = values.astype(np.float64)
    present = values[:, 0] > 0
    shot = np.cumsum(cut)
    for k in np.flatnonzero(present):
        near = slice(max(0, k - STEADY // 2), k + STEADY // 2 + 1)
        rows = values[near][present[near] & (shot[near] == shot[k])]
        out[k] = np.median(rows, axis=0)
    return out


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Frames [start, stop) of a video that become one record, cut out by the square window = (left, top, side)."""

    start: int
    stop: int
    window: tuple[int, int, int]
    flags: tuple[str, ...]


def choose_stretches(
    seen: Measurements, rules: Rules, fps: float, frame_size: tuple[int, int], borders: tuple[int, ...] = ()
) -> tuple[list[Stretch], dict[str, int]]:
    """The stretches of a video that become records, and for each reason how many frames are left out.

    A stretch is a run of frames of one shot with exactly one usable face, in equal parts of about `rules.seconds`.
    frame_size: (height, width) of the source. borders: frames at which a stretch must end as well.
    """
    why = faults(seen, rules)
    starts = seen.cut.copy()
    starts[[frame for frame in borders if 0 <= frame < len(starts)]] = True
    chosen = []
    for start, stop in _runs(why == "", starts):
        parts = max(1, round((stop - start) / (rules.seconds * fps)))
        edges = np.linspace(start, stop, parts + 1).round().astype(int)
        for first, last in zip(edges[:-1], edges[1:], strict=True):
            stretch = _stretch(seen, rules, fps, frame_size, int(first), int(last))
            if isinstance(stretch, Stretch):
                chosen.append(stretch)
            else:
                why[first:last] = stretch
    reasons, counts = np.unique(why[why != ""].astype(str), return_counts=True)
    return chosen, dict(zip(reasons.tolist(), counts.tolist(), strict=True))


def _runs(usable: np.ndarray, starts: np.ndarray) -> list[tuple[int, int]]:
    """[start, stop) of the maximal runs of usable frames that no shot's start divides."""
    edges = np.flatnonzero(starts | np.diff(usable, prepend=False)).tolist() + [len(usable)]
    return [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if usable[a]]


def _stretch(seen, rules, fps, frame_size, start, stop) -> Stretch | str:
    """The stretch, or why it cannot be used."""
    if stop - start < math.ceil(rules.min_seconds * fps - 1e-6):
        return f"shorter than {rules.min_seconds:g} s"
    rate = seen.fresh[start:stop].mean() * fps
    if rate < FROZEN_RATE:
        return f"fewer than {FROZEN_RATE:g} different frames a second"
    window = square_window(seen.box[start:stop], *frame_size)
    if window is None:
        return "face moves out of any square"
    flags = (["low-fps"] if rate < LOW_RATE else []) + window_flags(window, rules)
    return Stretch(start, stop, window, tuple(flags))


def window_flags(window: tuple[int, int, int], rules: Rules) -> list[str]:
    """What a record says of the square it was cut with."""
    return ["enlarged"] if window[2] * 1.5 < rules.size else []


def cut_square(image: np.ndarray, window: tuple[int, int, int], size: int) -> np.ndarray:
    """The square `window`, see `square_window`, of uint8 RGB (height, width, 3) as (size, size, 3)."""
    left, top, side = window
    method = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=method)


def square_window(boxes: np.ndarray, height: int, width: int) -> tuple[int, int, int] | None:
    """(left, top, side) of a square in a height x width picture that holds all boxes (N, 4) with a margin.

    The face takes FACE_HEIGHT of its height and lies in its middle, as far as the picture allows; None where no square
    in the picture holds nine tenths of the face's ways.
    """
    low, high = np.quantile(boxes[:, :2], 0.02, axis=0), np.quantile(boxes[:, 2:], 0.98, axis=0)
    low, high = np.maximum(low, 0), np.minimum(high, (width, height))
    reach = float((high - low).max())
    if reach > min(height, width) / 0.9:
        return None
    tall = float(np.median(boxes[:, 3] - boxes[:, 1]))
    side = math.floor(min(max(tall / FACE_HEIGHT, 1.1 * reach), height, width))
    middle = (low + high) / 2
    left = min(max(middle[0] - FACE_CENTRE[0] * side, 0), width - side)
    top = min(max(middle[1] - FACE_CENTRE[1] * side, 0), height - side)
    return round(left), round(top), side
