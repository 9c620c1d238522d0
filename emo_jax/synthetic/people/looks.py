"""Filters that turn rendered frames into paintings, drawings, posters and old photographs."""

from __future__ import annotations

import cv2
import numpy as np

TOON = {"toon": 0.85, "anime": 1.0, "poster": 0.6}  # how much the shading is stepped, by look


class Look:
    """A look, `identity.LOOKS`, with its random choices; `__call__` filters a frame (H, W, 3) uint8."""

    def __init__(self, name: str, rng: np.random.Generator, size: int):
        self.name = name
        self.toon = TOON.get(name, 0.0)
        noise = cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), 0.8)
        self._canvas = (noise / noise.std())[..., None]
        self._grain = float(rng.uniform(0, 1.6)) if name in ("plain", "mono", "sepia") else 0.0
        self._levels = int(rng.integers(4, 8))
        self._radius = int(rng.integers(1, 3))
        self._tint = np.array([1.08, 0.95, 0.74]) if name == "sepia" else np.ones(3)
        self._contrast = float(rng.uniform(0.85, 1.2))
        self._saturation = float(rng.uniform(0.8, 1.25) if name != "anime" else rng.uniform(1.2, 1.5))

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Returns the frame in this look."""
        if self.name == "paint":
            frame = kuwahara(frame, self._radius)
            frame = self._adjust(frame.astype(np.float32)) + 1.5 * self._canvas
        elif self.name in ("toon", "anime"):
            smooth = cv2.bilateralFilter(frame, 7, 40, 5)
            frame = self._adjust(smooth.astype(np.float32)) * (1 - 0.75 * _outlines(smooth)[..., None])
        elif self.name == "poster":
            smooth = cv2.bilateralFilter(frame, 7, 50, 5).astype(np.float32)
            frame = np.round(self._adjust(smooth) / 255 * self._levels) / self._levels * 255
        elif self.name == "sketch":
            grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            dodge = cv2.divide(grey, 255 - cv2.GaussianBlur(255 - grey, (0, 0), 5), scale=256)
            frame = np.repeat((0.75 * dodge + 0.25 * grey)[..., None].astype(np.float32), 3, 2) + 1.5 * self._canvas
        elif self.name in ("mono", "sepia"):
            grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
            frame = ((grey - 128) * self._contrast + 128) * self._tint + self._grain * self._canvas
        else:
            frame = self._adjust(frame.astype(np.float32)) + 0.5 * self._grain * self._canvas
        return np.clip(frame, 0, 255).astype(np.uint8)

    def _adjust(self, frame: np.ndarray) -> np.ndarray:
        grey = frame.mean(-1, keepdims=True)
        return ((grey + self._saturation * (frame - grey)) - 128) * self._contrast + 128


def kuwahara(frame: np.ndarray, radius: int) -> np.ndarray:
    """Returns a frame (H, W, 3) uint8 as if painted: each pixel takes the mean of its calmest neighbouring square."""
    size = radius + 1
    colours = frame.astype(np.float32)
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    best, least = colours, np.full(grey.shape, np.inf, np.float32)
    for anchor in ((0, 0), (radius, 0), (0, radius), (radius, radius)):
        mean = cv2.blur(colours, (size, size), anchor=anchor)
        variance = cv2.blur(grey * grey, (size, size), anchor=anchor) - cv2.blur(grey, (size, size), anchor=anchor) ** 2
        best = np.where((variance < least)[..., None], mean, best)
        least = np.minimum(least, variance)
    return best.clip(0, 255).astype(np.uint8)


def _outlines(frame: np.ndarray) -> np.ndarray:
    """Returns where edges are, (H, W) float32 in [0, 1]."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    edge = cv2.GaussianBlur(grey, (0, 0), 1.6) - cv2.GaussianBlur(grey, (0, 0), 0.7)
    return np.clip((edge - 2.5) / 9, 0, 1)
