"""People: every attribute of a rendered person, sampled from a seed, and the shape of the head."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

import numpy as np

from emo_jax.synthetic.people.assets import HeadData

HAIR_STYLES = (
    "bald",
    "buzz",
    "crop",
    "side",
    "back",
    "spiky",
    "curly",
    "afro",
    "bob",
    "long",
    "wavy",
    "tied",
    "receding",
)
FRINGES = ("none", "straight", "swept")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
GLASSES = ("none", "round", "square", "thin")
CLOTHES = ("crew", "v-neck", "collar", "turtle", "jacket")
LOOKS = ("plain", "mono", "sepia", "paint", "sketch", "toon", "anime", "poster")
LOOK_SHARES = (0.66, 0.05, 0.03, 0.09, 0.02, 0.06, 0.06, 0.03)

_SKINS = np.array(
    [[246, 214, 196], [236, 196, 170], [222, 174, 142], [200, 146, 112], [164, 112, 80], [124, 82, 58], [84, 54, 40]]
)
_HAIRS = np.array(
    [
        [18, 15, 14],
        [36, 26, 20],
        [62, 42, 28],
        [98, 66, 42],
        [142, 100, 58],
        [196, 158, 104],
        [138, 62, 30],
        [120, 118, 116],
        [206, 202, 196],
    ]
)
_IRISES = np.array([[62, 38, 22], [92, 58, 30], [104, 90, 48], [74, 106, 74], [84, 122, 158], [112, 132, 146]])
_OPPOSITES = (
    ("decr", "incr"),
    ("down", "up"),
    ("in", "out"),
    ("backward", "forward"),
    ("concave", "convex"),
    ("compress", "uncompress"),
)
_STRENGTH = {  # standard deviation of a detail, by folder
    "head": 0.30,
    "mouth": 0.42,
    "nose": 0.42,
    "eyes": 0.42,
    "chin": 0.42,
    "cheek": 0.45,
    "eyebrows": 0.5,
    "forehead": 0.45,
    "ears": 0.4,
    "neck": 0.25,
    "asym": 0.12,
}
_CALM = ("trans", "scale")  # details that move a feature as a unit: half as strong
_ANIME = (  # large eyes over a small nose and mouth
    "eyes/l-eye-scale-incr",
    "eyes/r-eye-scale-incr",
    "eyes/l-eye-height2-incr",
    "eyes/r-eye-height2-incr",
    "nose/nose-scale-horiz-decr",
    "nose/nose-volume-decr",
    "mouth/mouth-scale-horiz-decr",
)
_HEAD_SHAPES = tuple(
    f"head/head-{name}"
    for name in ("diamond", "invertedtriangular", "oval", "rectangular", "round", "square", "triangular")
)
_SKIPPED = (
    "head/head-trans",
    "head/head-age",
    "head/head-angle",
    "neck/neck-trans",
    "eyes/l-eye-push",
    "neck/neck-back",
)


@dataclass(frozen=True, eq=False)
class Person:
    """One person. Colours are sRGB in [0, 1], shape (3,); shares and strengths are in [0, 1]."""

    seed: int
    ancestry: np.ndarray  # shares of the African, Asian and European targets
    male: float
    age: float  # 0 a child of ten, 0.25 young, 1 old
    weight: float  # 0 thin, 0.5 average, 1 heavy
    skin: np.ndarray
    lips: np.ndarray
    hair: np.ndarray
    grey: float
    iris: np.ndarray
    hair_style: str
    fringe: str
    parting: float  # -1 right, 1 left
    beard: str
    glasses: str
    glasses_colour: np.ndarray
    clothes: str
    clothes_colours: np.ndarray  # (2, 3)
    make_up: float
    freckles: float
    wrinkles: float
    brows: float  # thickness
    look: str

    @classmethod
    def sample(cls, seed: int) -> Person:
        """Returns the person of an integer seed >= 0; equal seeds give equal people."""
        if int(seed) < 0:
            raise ValueError(f"person seed {seed} is negative; give an integer >= 0")
        rng = np.random.default_rng([int(seed), 10])
        ancestry = rng.dirichlet([0.45, 0.45, 0.45])
        male = float(np.clip(rng.choice([0.0, 1.0]) + rng.normal(0, 0.15), 0, 1))
        age = float(rng.uniform(0, 0.2) if rng.random() < 0.1 else rng.uniform(0.2, 1))
        man = male > 0.5 and age > 0.2
        skin, hair, grey = _complexion(rng, ancestry, age)
        beard = str(rng.choice(BEARDS, p=(0.4, 0.22, 0.09, 0.11, 0.18))) if man else "none"
        style = _hair_style(rng, man, male < 0.5, age)
        make_up = float(rng.uniform(0.2, 1)) if male < 0.5 and age > 0.2 and rng.random() < 0.65 else 0.0
        lips = np.clip(skin * (0.98, 0.74, 0.72) + rng.normal(0, 0.02, 3), 0, 1)
        if make_up > 0.3:
            paint = np.array([rng.uniform(0.55, 0.8), rng.uniform(0.1, 0.35), rng.uniform(0.15, 0.4)])
            lips = lips + (paint - lips) * make_up * rng.uniform(0.3, 0.9)
        return cls(
            seed=int(seed),
            ancestry=ancestry,
            male=male,
            age=age,
            weight=float(np.clip(rng.normal(0.45, 0.28), 0, 1)),
            skin=skin,
            lips=lips,
            hair=hair,
            grey=grey,
            iris=_iris(rng, ancestry),
            hair_style=style,
            fringe=_fringe(rng, style),
            parting=float(rng.choice([-1, 1]) * rng.uniform(0.2, 1)),
            beard=beard,
            glasses=str(rng.choice(GLASSES, p=(0.74, 0.08, 0.09, 0.09))),
            glasses_colour=hsv(rng.random(), rng.uniform(0, 0.7), rng.choice([0.06, 0.1, 0.3, 0.5])),
            clothes=str(rng.choice(CLOTHES, p=(0.3, 0.2, 0.2, 0.12, 0.18))),
            clothes_colours=np.stack([hsv(rng.random(), rng.uniform(0, 0.7), rng.uniform(0.08, 0.9)) for _ in "ab"]),
            make_up=make_up,
            freckles=float(rng.beta(0.5, 2.5)),
            wrinkles=float(np.clip((age - 0.35) * 1.3 + rng.normal(0, 0.1), 0, 1)),
            brows=float(np.clip(rng.normal(0.34 + 0.18 * male, 0.16), 0.08, 0.9)),
            look=str(rng.choice(LOOKS, p=LOOK_SHARES)),
        )

    @functools.cached_property
    def appearance(self) -> np.ndarray:
        """What makes the face this person's: float32, one value, mostly in [0, 1], per `APPEARANCE_NAMES`."""
        chosen = (
            (self.hair_style, HAIR_STYLES),
            (self.fringe, FRINGES),
            (self.beard, BEARDS),
            (self.glasses, GLASSES),
            (self.look, LOOKS),
        )
        flags = [float(value == option) for value, options in chosen for option in options]
        numbers = (self.male, self.age, self.weight, self.make_up, self.freckles, self.wrinkles, self.brows)
        colours = (*self.skin, *self.lips, *self.hair, *self.iris)
        return np.array([*self.ancestry, *numbers, *colours, *flags], np.float32)

    def shape(self, heads: HeadData) -> np.ndarray:
        """Returns the vertices (V, 3) of this person's head at rest."""
        drawn = sum(heads.target(name) for name in _ANIME) if self.look == "anime" else 0.0
        return heads.rest + _macro(self, heads) + _details(self, heads) + drawn

    def __getstate__(self) -> dict:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)


APPEARANCE_NAMES: tuple[str, ...] = (
    *(f"ancestry_{name}" for name in ("african", "asian", "european")),
    *("male", "age", "weight", "make_up", "freckles", "wrinkles", "brows"),
    *(f"{part}_{channel}" for part in ("skin", "lips", "hair", "iris") for channel in ("red", "green", "blue")),
    *(f"hair_{name}" for name in HAIR_STYLES),
    *(f"fringe_{name}" for name in FRINGES),
    *(f"beard_{name}" for name in BEARDS),
    *(f"glasses_{name}" for name in GLASSES),
    *(f"look_{name}" for name in LOOKS),
)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Returns the RGB colour (3,) in [0, 1] of hue, saturation and value in [0, 1]."""
    ramp = np.clip(np.abs((hue + np.array([0, 2, 1]) / 3) % 1 * 6 - 3) - 1, 0, 1)
    return value * (1 - saturation + saturation * ramp)


def _complexion(rng: np.random.Generator, ancestry: np.ndarray, age: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the colours of skin and hair, and the share of grey hair."""
    darkness = ancestry @ (5.2, 2.1, 0.9) + rng.normal(0, 0.7)
    at = float(np.clip(darkness, 0, len(_SKINS) - 1))
    skin = np.array([np.interp(at, np.arange(len(_SKINS)), _SKINS[:, c]) for c in range(3)]) / 255
    skin = np.clip(skin + rng.normal(0, 0.012, 3) + rng.normal(0, 0.02) * np.array([1, -0.2, -0.6]), 0.05, 1)
    grey = float(np.clip((age - 0.55) * 2 + rng.normal(0, 0.35), 0, 1)) if age > 0.45 else 0.0
    shares = (
        np.array([1, 1, 1, 0.8, 0.8, 0.7, 0.4, 0.05, 0.03])
        if darkness < 1.7
        else np.array([4, 2, 1, 0.2, 0, 0, 0, 0, 0])
    )
    hair = _HAIRS[rng.choice(len(_HAIRS), p=shares / shares.sum())] / 255
    if rng.random() < 0.04:
        hair = hsv(rng.random(), rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.8))  # dyed
    hair = np.clip(hair * rng.uniform(0.85, 1.2), 0, 1)
    silver = np.array([0.62, 0.61, 0.6]) * rng.uniform(0.8, 1.25)
    return skin, hair + (silver - hair) * 0.8 * grey, grey


def _iris(rng: np.random.Generator, ancestry: np.ndarray) -> np.ndarray:
    light = ancestry[2] > 0.5 and rng.random() < 0.65
    index = rng.integers(2, len(_IRISES)) if light else rng.integers(0, 3)
    return np.clip(_IRISES[index] / 255 * rng.uniform(0.75, 1.25), 0, 1)


def _hair_style(rng: np.random.Generator, man: bool, woman: bool, age: float) -> str:
    if man:
        shares = (0.07, 0.12, 0.2, 0.14, 0.1, 0.08, 0.08, 0.04, 0.01, 0.04, 0.02, 0.02, 0.08 if age > 0.4 else 0.0)
    elif woman:
        shares = (0.01, 0.02, 0.05, 0.05, 0.04, 0.02, 0.1, 0.05, 0.18, 0.2, 0.16, 0.12, 0.0)
    else:
        shares = (0.0, 0.1, 0.25, 0.2, 0.05, 0.1, 0.1, 0.05, 0.05, 0.05, 0.0, 0.05, 0.0)
    return str(rng.choice(HAIR_STYLES, p=np.array(shares) / np.sum(shares)))


def _fringe(rng: np.random.Generator, style: str) -> str:
    if style in ("bob", "long", "wavy"):
        return str(rng.choice(FRINGES, p=(0.45, 0.25, 0.3)))
    return str(rng.choice(FRINGES, p=(0.4, 0.2, 0.4))) if style == "crop" else "none"


def _macro(person: Person, heads: HeadData) -> np.ndarray:
    """Returns the displacement (V, 3) that sex, age, weight and ancestry make together."""
    young = min(person.age / 0.25, 1.0) if person.age < 0.25 else 1 - (person.age - 0.25) / 0.75
    ages = {"child": 1 - young, "young": young} if person.age < 0.25 else {"young": young, "old": 1 - young}
    heavy = abs(person.weight - 0.5) * 2 * 0.8
    weights = {"averageweight": 1 - heavy, ("maxweight" if person.weight > 0.5 else "minweight"): heavy}
    delta = np.zeros_like(heads.rest)
    for sex, of_sex in (("male", person.male), ("female", 1 - person.male)):
        for age, of_age in ages.items():
            for folk, of_folk in zip(("african", "asian", "caucasian"), person.ancestry, strict=True):
                if (share := of_sex * of_age * of_folk) > 0.01:
                    delta += share * heads.target(f"macrodetails/{folk}-{sex}-{age}")
            for weight, of_weight in weights.items():
                if (share := of_sex * of_age * of_weight) > 0.01:
                    delta += share * heads.target(f"macrodetails/universal-{sex}-{age}-averagemuscle-{weight}")
    return delta


@functools.cache
def _detail_pairs(names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Returns (negative, positive) target names of each detail that a face can have; "" where one is missing."""
    pairs = {}
    for name in names:
        folder, _, rest = name.partition("/")
        if folder == "macrodetails" or name in _HEAD_SHAPES or rest.startswith("r-") or name.startswith(_SKIPPED):
            continue
        stem, _, end = name.rpartition("-")
        for low, high in (*_OPPOSITES, ("l", "r")):
            if end in (low, high):
                pair = pairs.setdefault(stem, ["", ""])
                pair[end == high] = name
                break
        else:
            pairs[name] = ["", name]
    return tuple((stem, tuple(pair)) for stem, pair in sorted(pairs.items()))


def _details(person: Person, heads: HeadData) -> np.ndarray:
    rng = np.random.default_rng([person.seed, 11])
    delta = np.zeros_like(heads.rest)
    for stem, pair in _detail_pairs(heads.target_names):
        folder, _, rest = stem.partition("/")
        amount = rng.normal(0, _STRENGTH[folder]) * (0.55 if any(word in rest for word in _CALM) else 1.0)
        uneven = rng.normal(0, 0.06) if rest.startswith("l-") else 0.0
        amount = float(np.clip(amount, -1, 1))
        name = pair[amount > 0]
        if not name:
            continue
        delta += abs(amount) * heads.target(name)
        if rest.startswith("l-"):
            other = name.replace("/l-", "/r-")
            delta += max(abs(amount) + uneven, 0) * heads.target(other)
    shape = str(rng.choice(_HEAD_SHAPES))
    return delta + rng.uniform(0, 0.6) * heads.target(shape)
