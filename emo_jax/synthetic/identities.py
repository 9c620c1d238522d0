"""People of the procedural world: all attributes of a drawn head, sampled from a seed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

HAIR_STYLES = ("bald", "short", "curly", "bob", "long", "bun")
FRINGES = ("none", "straight", "swept")
GLASSES = ("none", "round", "square")
BEARDS = ("none", "moustache", "full")
STYLES = ("flat", "cartoon", "shaded", "painterly")
BACKGROUNDS = ("plain", "gradient", "blobs")
CLOTHES = ("plain", "stripes", "collar", "v-neck", "zip", "dots")
_SKINS = (
    np.array([[255, 226, 205], [244, 204, 172], [226, 176, 138], [198, 142, 102], [150, 100, 68], [98, 64, 46]]) / 255
)
_HAIRS = (
    np.array(
        [
            [28, 22, 22],
            [62, 40, 28],
            [110, 70, 38],
            [168, 112, 56],
            [226, 190, 110],
            [170, 64, 30],
            [150, 150, 154],
            [226, 224, 218],
        ]
    )
    / 255
)
_EYES = np.array([[74, 46, 26], [112, 74, 36], [70, 120, 70], [60, 116, 176], [110, 130, 144], [40, 40, 44]]) / 255
_RANGES = {  # attribute: (low, high), in half face heights unless said otherwise
    "face_height": (0.465, 0.535),  # chin to crown, in image heights
    "face_width": (0.70, 0.85),
    "jaw": (1.7, 3.2),  # exponent of the jaw line: pointed to square
    "eye_size": (0.125, 0.18),
    "eye_open": (0.52, 0.80),  # height of the opened eye relative to its width
    "eye_gap": (0.29, 0.36),
    "eye_slant": (-0.03, 0.035),
    "brow_thickness": (0.03, 0.085),
    "brow_angle": (-0.06, 0.03),
    "nose_length": (0.16, 0.30),
    "nose_width": (0.09, 0.17),
    "mouth_size": (0.86, 1.14),
    "lip_thickness": (0.045, 0.095),
    "ear_size": (0.8, 1.25),
}


@dataclass(frozen=True, eq=False)
class Identity:
    """One drawn person with clothes and background.

    Colours are RGB in [0, 1], shape (3,); `_RANGES` gives the units of `shape`. `light` is the horizontal position of
    the light, from -1 (left) to 1 (right).
    """

    seed: int
    skin: np.ndarray
    hair: np.ndarray
    eye: np.ndarray
    lip: np.ndarray
    hair_style: str
    fringe: str
    glasses: str
    beard: str
    style: str
    shape: dict[str, float]
    glasses_colour: np.ndarray
    clothes: str
    clothes_colours: np.ndarray  # (2, 3)
    background: str
    background_colours: np.ndarray  # (3, 3)
    light: float

    @classmethod
    def sample(cls, seed: int) -> Identity:
        """Draws the person with an integer seed >= 0; equal seeds give equal people."""
        if int(seed) < 0:
            raise ValueError(f"identity seed {seed} is negative; give an integer >= 0")
        rng = np.random.default_rng([int(seed), 0])
        style = str(rng.choice(STYLES, p=(0.2, 0.25, 0.35, 0.2)))
        skin = _between(rng, _SKINS)
        if style != "shaded" and rng.random() < 0.08:  # drawings may have any skin colour
            skin = _hsv(rng.random(), rng.uniform(0.25, 0.5), rng.uniform(0.75, 0.95))
        hair = _between(rng, _HAIRS, step=True)
        if rng.random() < 0.12:
            hair = _hsv(rng.random(), rng.uniform(0.4, 0.8), rng.uniform(0.5, 0.9))
        hair_style = str(rng.choice(HAIR_STYLES, p=(0.1, 0.24, 0.14, 0.18, 0.2, 0.14)))
        manly = hair_style in ("bald", "short", "curly") and rng.random() < 0.45
        red = np.array([0.70, 0.20, 0.22]) if rng.random() < 0.5 else np.array([0.80, 0.42, 0.40])
        return cls(
            seed=int(seed),
            skin=skin,
            hair=hair,
            eye=_between(rng, _EYES, step=True),
            lip=np.clip(skin * rng.uniform(0.25, 0.55) + red * 0.5, 0, 1),
            hair_style=hair_style,
            fringe="none" if hair_style == "bald" else str(rng.choice(FRINGES, p=(0.4, 0.25, 0.35))),
            glasses=str(rng.choice(GLASSES, p=(0.72, 0.14, 0.14))),
            beard=str(rng.choice(BEARDS[1:])) if manly else "none",
            style=style,
            shape={name: float(rng.uniform(low, high)) for name, (low, high) in _RANGES.items()},
            glasses_colour=_hsv(rng.random(), rng.uniform(0, 0.8), rng.uniform(0.1, 0.45)),
            clothes=str(rng.choice(CLOTHES)),
            clothes_colours=np.stack(
                [_hsv(rng.random(), rng.uniform(0.1, 0.75), rng.uniform(0.2, 0.9)) for _ in range(2)]
            ),
            background=str(rng.choice(BACKGROUNDS)),
            background_colours=_background(rng),
            light=float(rng.uniform(-1, 1)),
        )

    @cached_property
    def appearance(self) -> np.ndarray:
        """Returns the face's attributes, float32 in [0, 1], one value for each of `APPEARANCE_NAMES`."""
        shape = [(self.shape[name] - low) / (high - low) for name, (low, high) in _RANGES.items()]
        chosen = [
            (self.hair_style, HAIR_STYLES),
            (self.fringe, FRINGES),
            (self.glasses, GLASSES),
            (self.beard, BEARDS),
            (self.style, STYLES),
        ]
        flags = [float(value == option) for value, options in chosen for option in options]
        return np.array([*self.skin, *self.hair, *self.eye, *self.lip, *shape, *flags], np.float32)

    @cached_property
    def cache(self) -> dict:
        """Drawings and geometry that the renderer caches between frames."""
        return {}

    def __getstate__(self) -> dict:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)


APPEARANCE_NAMES: tuple[str, ...] = (
    *(f"{part}_{channel}" for part in ("skin", "hair", "eye", "lip") for channel in ("red", "green", "blue")),
    *_RANGES,
    *(f"hair_{name}" for name in HAIR_STYLES),
    *(f"fringe_{name}" for name in FRINGES),
    *(f"glasses_{name}" for name in GLASSES),
    *(f"beard_{name}" for name in BEARDS),
    *(f"style_{name}" for name in STYLES),
)


def _between(rng: np.random.Generator, palette: np.ndarray, step: bool = False) -> np.ndarray:
    """A colour on the palette's path, a little off it; `step` keeps to the palette's own entries."""
    at = rng.integers(len(palette)) if step else rng.uniform(0, len(palette) - 1)
    colour = [np.interp(at, np.arange(len(palette)), palette[:, channel]) for channel in range(3)]
    return np.clip(np.array(colour) + rng.normal(0, 0.015, 3), 0, 1)


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    ramp = np.clip(np.abs((hue + np.array([0, 2, 1]) / 3) % 1 * 6 - 3) - 1, 0, 1)
    return value * (1 - saturation + saturation * ramp)


def _background(rng: np.random.Generator) -> np.ndarray:
    hue, bright = rng.random(), rng.uniform(0.35, 0.95)
    return np.stack(
        [
            _hsv((hue + rng.uniform(-0.1, 0.1)) % 1, rng.uniform(0.08, 0.5), np.clip(bright + shift, 0.15, 1))
            for shift in (0, rng.uniform(-0.25, -0.1), rng.uniform(0.02, 0.2))
        ]
    )
