"""People: every attribute of a rendered person, sampled from a seed, and the shape of the head."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

import numpy as np

from emo_jax.synthetic.people.assets import HeadData
from emo_jax.synthetic.people.colours import hsv, sample_cloth, sample_hair, sample_iris, sample_lips, sample_skin

HAIR_STYLES = (
    "bald",
    "buzz",
    "crop",
    "side",
    "back",
    "spiky",
    "curly",
    "afro",
    "pixie",
    "bob",
    "long",
    "wavy",
    "tied",
    "receding",
)
FRINGES = ("none", "straight", "swept")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
GLASSES = ("none", "round", "square", "thin")
CLOTHES = ("crew", "v-neck", "collar", "turtle", "jacket", "scarf")
LOOKS = ("plain", "mono", "sepia", "paint", "sketch", "toon", "anime", "poster")
LOOK_SHARES = (0.66, 0.05, 0.03, 0.09, 0.02, 0.06, 0.06, 0.03)

_OPPOSITES = (
    ("decr", "incr"),
    ("down", "up"),
    ("in", "out"),
    ("backward", "forward"),
    ("concave", "convex"),
    ("compress", "uncompress"),
)
_STRENGTH = {  # standard deviation of a detail, by folder
    "head": 0.2,
    "mouth": 0.26,
    "nose": 0.3,
    "eyes": 0.26,
    "chin": 0.27,
    "cheek": 0.3,
    "eyebrows": 0.25,
    "forehead": 0.3,
    "ears": 0.3,
    "neck": 0.15,
    "asym": 0.08,
}
_CALM = ("trans", "scale")  # details that move a feature as a unit: half as strong
_EVERYBODY = {  # moves the mesh's average towards portraits: larger eyes, a slimmer neck
    "eyes/{}-eye-scale-incr": 0.3,
    "eyes/{}-eye-height2-incr": 0.1,
    "eyebrows/eyebrows-trans-up": 0.2,
    "neck/neck-scale-horiz-decr": 0.3,
    "mouth/mouth-angles-up": 0.15,
}
_WOMEN = {  # differences between the sexes that the macro targets understate
    "eyes/{}-eye-scale-incr": 0.25,
    "eyes/{}-eye-height2-incr": 0.1,
    "eyebrows/eyebrows-trans-up": 0.35,
    "eyebrows/eyebrows-trans-backward": 0.4,
    "mouth/mouth-lowerlip-volume-incr": 0.2,
    "mouth/mouth-upperlip-volume-incr": 0.15,
    "mouth/mouth-upperlip-height-incr": 0.2,
    "nose/nose-scale-horiz-decr": 0.3,
    "nose/nose-scale-vert-decr": 0.2,
    "chin/chin-width-decr": 0.4,
    "chin/chin-height-decr": 0.15,
    "head/head-oval": 0.3,
    "neck/neck-scale-horiz-decr": 0.35,
    "neck/neck-scale-depth-decr": 0.2,
}
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
        male = float(np.clip(rng.choice([0.0, 1.0]) + rng.normal(0, 0.12), 0, 1))
        age = float(rng.uniform(0.05, 0.2) if rng.random() < 0.08 else 0.2 + 0.8 * rng.beta(1.1, 1.8))
        man = male > 0.5 and age > 0.2
        look = str(rng.choice(LOOKS, p=LOOK_SHARES))
        skin = sample_skin(rng, ancestry, male)
        hair, grey = sample_hair(rng, skin, age, 0.3 if look == "anime" else 0.015)
        beard = str(rng.choice(BEARDS, p=(0.52, 0.2, 0.06, 0.08, 0.14))) if man else "none"
        style = _hair_style(rng, man, male < 0.5 and age > 0.2)
        make_up = float(rng.uniform(0.2, 1)) if male < 0.5 and age > 0.2 and rng.random() < 0.65 else 0.0
        return cls(
            seed=int(seed),
            ancestry=ancestry,
            male=male,
            age=age,
            weight=float(np.clip(rng.normal(0.36, 0.22), 0, 1)),
            skin=skin,
            lips=sample_lips(rng, skin, make_up),
            hair=hair,
            grey=grey,
            iris=sample_iris(rng, ancestry),
            hair_style=style,
            fringe=_fringe(rng, style),
            parting=float(rng.choice([-1, 1]) * rng.uniform(0.2, 1)),
            beard=beard,
            glasses=str(rng.choice(GLASSES, p=(0.8, 0.06, 0.07, 0.07))),
            glasses_colour=hsv(rng.random(), rng.uniform(0, 0.5), rng.choice([0.06, 0.1, 0.2, 0.45])),
            clothes=str(rng.choice(CLOTHES, p=(0.27, 0.18, 0.2, 0.08, 0.2, 0.07))),
            clothes_colours=np.stack([sample_cloth(rng) for _ in "ab"]),
            make_up=make_up,
            freckles=float(rng.beta(0.4, 3.5)),
            wrinkles=float(np.clip((age - 0.42) * 1.4 + rng.normal(0, 0.08), 0, 1)),
            brows=float(np.clip(rng.normal(0.2 + 0.25 * male, 0.12), 0.05, 0.8)),
            look=look,
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


_STYLE_SHARES = {  # of the hair styles of men, women and children, in the order of HAIR_STYLES
    "man": (0.06, 0.13, 0.21, 0.23, 0.12, 0.05, 0.06, 0.03, 0.0, 0.01, 0.03, 0.01, 0.02, 0.04),
    "woman": (0.005, 0.01, 0.01, 0.02, 0.03, 0.01, 0.08, 0.035, 0.09, 0.2, 0.24, 0.15, 0.12, 0.0),
    "child": (0.0, 0.07, 0.22, 0.2, 0.03, 0.08, 0.08, 0.04, 0.08, 0.1, 0.06, 0.02, 0.02, 0.0),
}


def _hair_style(rng: np.random.Generator, man: bool, woman: bool) -> str:
    shares = np.array(_STYLE_SHARES["man" if man else "woman" if woman else "child"])
    return str(rng.choice(HAIR_STYLES, p=shares / shares.sum()))


def _fringe(rng: np.random.Generator, style: str) -> str:
    if style in ("bob", "long", "wavy", "pixie"):
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
    for typical, share in ((_EVERYBODY, 1.0), (_WOMEN, (1 - person.male) * rng.uniform(0.5, 1.3))):
        for name, amount in typical.items():
            for side in "lr" if "{}" in name else " ":
                delta += share * amount * heads.target(name.format(side))
    shape = str(rng.choice(_HEAD_SHAPES))
    return delta + rng.uniform(0, 0.45) * heads.target(shape)
