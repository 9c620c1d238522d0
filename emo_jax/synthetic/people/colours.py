"""Natural colours of skin, lips, hair and irises, sampled in CIELAB. Colours that are returned are sRGB in [0, 1]."""

from __future__ import annotations

import cv2
import numpy as np

# L*, a*, b* of facial skin from dark to fair, rounded from spectrophotometer measurements: redness hardly depends on
# descent, yellowness is greatest at medium lightness (Xiao et al. 2017, doi:10.1111/srt.12295; Wang et al., CIC 2015).
_SKINS = np.array([[29, 9, 9.5], [38, 11, 15], [48, 11.5, 18], [57, 11, 17.5], [65, 10, 15], [71, 8.5, 12]])
_LIGHTNESS = np.array([43, 62, 66])  # mean L* for African, Asian and European descent
_HAIRS = np.array(
    [
        [18, 15, 14],
        [34, 26, 21],
        [58, 41, 29],
        [88, 64, 44],
        [128, 97, 64],
        [178, 146, 102],
        [118, 60, 34],
        [214, 188, 146],
    ]
)
_IRISES = np.array([[50, 31, 20], [74, 47, 27], [92, 74, 44], [88, 104, 80], [86, 116, 146], [112, 130, 142]])
_PAINTS = np.array([[0.70, 0.12, 0.16], [0.78, 0.32, 0.38], [0.72, 0.38, 0.34], [0.48, 0.12, 0.2], [0.85, 0.42, 0.45]])


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Returns the sRGB colours (..., 3) in [0, 1] of CIELAB colours (..., 3)."""
    flat = np.asarray(lab, np.float32).reshape(1, -1, 3)
    return cv2.cvtColor(flat, cv2.COLOR_LAB2RGB).reshape(np.shape(lab)).clip(0, 1).astype(np.float64)


def srgb_to_lab(colour: np.ndarray) -> np.ndarray:
    """Returns the CIELAB colours (..., 3) of sRGB colours (..., 3) in [0, 1]."""
    flat = np.asarray(colour, np.float32).reshape(1, -1, 3)
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(np.shape(colour)).astype(np.float64)


def sample_skin(rng: np.random.Generator, ancestry: np.ndarray, male: float) -> np.ndarray:
    """Returns the colour (3,) of facial skin; women are a little fairer than men."""
    lightness = float(np.clip(ancestry @ _LIGHTNESS + 1 - 2 * male + rng.normal(0, 4.5), 27, 73))
    mean = [np.interp(lightness, _SKINS[:, 0], _SKINS[:, channel]) for channel in range(3)]
    return lab_to_srgb(np.array(mean) + (0, rng.normal(0, 1.2), rng.normal(0, 1.5)))


def sample_lips(rng: np.random.Generator, skin: np.ndarray, make_up: float) -> np.ndarray:
    """Returns the colour (3,) of lips: redder and darker than the skin, or painted."""
    lab = srgb_to_lab(skin)
    fair = np.clip((lab[0] - 30) / 35, 0, 1)
    lips = lab_to_srgb(lab + (rng.normal(-2 - 7 * fair, 2), rng.normal(5 + 7 * fair, 2), rng.normal(-1, 1.5)))
    if make_up > 0.3:
        paint = np.clip(_PAINTS[rng.integers(len(_PAINTS))] + rng.normal(0, 0.04, 3), 0, 1)
        lips = lips + (paint * (0.55 + 0.45 * fair) - lips) * make_up * rng.uniform(0.2, 0.85)
    return lips


def sample_hair(rng: np.random.Generator, skin: np.ndarray, age: float, dyed: float) -> tuple[np.ndarray, float]:
    """Returns the colour (3,) of hair and its share of grey; with probability `dyed` in a colour of fantasy."""
    fair = srgb_to_lab(skin)[0] > 59
    shares = np.array([1, 1.2, 1.2, 1, 0.7, 0.6, 0.35, 0.3] if fair else [4, 3, 1, 0.15, 0, 0, 0.05, 0])
    hair = _HAIRS[rng.choice(len(_HAIRS), p=shares / shares.sum())] / 255 * rng.uniform(0.85, 1.2)
    if rng.random() < dyed:
        hair = hsv(rng.random(), rng.uniform(0.3, 0.7), rng.uniform(0.4, 0.8))
    grey = float(np.clip((age - 0.6) * 2.2 + rng.normal(0, 0.3), 0, 1)) if age > 0.5 else 0.0
    silver = np.array([0.62, 0.61, 0.6]) * rng.uniform(0.8, 1.25)
    return (np.clip(hair, 0, 1) * (1 - 0.85 * grey) + silver * 0.85 * grey).clip(0, 1), grey


def sample_iris(rng: np.random.Generator, ancestry: np.ndarray) -> np.ndarray:
    """Returns the colour (3,) of the irises."""
    light = ancestry[2] > 0.5 and rng.random() < 0.6
    index = rng.integers(2, len(_IRISES)) if light else rng.integers(0, 2)
    return np.clip(_IRISES[index] / 255 * rng.uniform(0.8, 1.15), 0, 1)


def sample_cloth(rng: np.random.Generator) -> np.ndarray:
    """Returns the colour (3,) of a cloth: black, white, grey, navy or beige half of the time."""
    if rng.random() < 0.5:
        quiet = np.array([[28, 28, 32], [212, 210, 206], [120, 122, 126], [34, 42, 70], [172, 154, 130], [70, 72, 78]])
        return np.clip(quiet[rng.integers(len(quiet))] / 255 + rng.normal(0, 0.02, 3), 0.03, 0.85)
    return hsv(rng.random(), rng.uniform(0.1, 0.65), rng.uniform(0.12, 0.75))


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Returns the RGB colour (3,) in [0, 1] of hue, saturation and value in [0, 1]."""
    ramp = np.clip(np.abs((hue + np.array([0, 2, 1]) / 3) % 1 * 6 - 3) - 1, 0, 1)
    return value * (1 - saturation + saturation * ramp)
