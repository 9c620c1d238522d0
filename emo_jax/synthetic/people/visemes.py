"""How phonemes move a mouth: targets for each phoneme, coarticulation, and the blend shapes that follow.

Lips and jaw follow the model of Cohen and Massaro (1993): each phoneme pulls each articulator towards a target with a
dominance that rises before its sound and falls after it. Lips lead the sound; rounding leads most. Closures of p, b and
m and the lip bite of f and v are put on top, since no neighbour may open them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RATE = 100  # articulator samples per second
ARTICULATORS = ("jaw", "lips", "round", "spread", "teeth", "tongue")
_VOWELS = {  # jaw, lips apart, rounding, spreading, each in [0, 1]
    "a": (0.85, 0.5, 0.0, 0.15),
    "ɐ": (0.7, 0.45, 0.0, 0.1),
    "ɑ": (0.9, 0.5, 0.05, 0.0),
    "ʌ": (0.65, 0.45, 0.0, 0.05),
    "æ": (0.8, 0.6, 0.0, 0.4),
    "ɛ": (0.55, 0.5, 0.0, 0.35),
    "e": (0.42, 0.5, 0.0, 0.5),
    "ə": (0.36, 0.35, 0.0, 0.1),
    "ɚ": (0.34, 0.35, 0.25, 0.0),
    "ɜ": (0.42, 0.4, 0.15, 0.05),
    "i": (0.2, 0.5, 0.0, 0.8),
    "ɪ": (0.28, 0.45, 0.0, 0.5),
    "ɨ": (0.25, 0.4, 0.0, 0.4),
    "ɯ": (0.25, 0.35, 0.1, 0.2),
    "ɔ": (0.6, 0.35, 0.5, 0.0),
    "ɒ": (0.7, 0.4, 0.35, 0.0),
    "o": (0.45, 0.3, 0.75, 0.0),
    "ɵ": (0.35, 0.3, 0.6, 0.0),
    "ʊ": (0.28, 0.25, 0.7, 0.0),
    "u": (0.2, 0.2, 0.95, 0.0),
    "y": (0.2, 0.2, 0.95, 0.0),
    "ʏ": (0.28, 0.25, 0.8, 0.0),
    "ø": (0.4, 0.3, 0.8, 0.0),
    "œ": (0.52, 0.35, 0.6, 0.0),
}
_CONSONANTS = {  # jaw, lips, round, spread, teeth, tongue, dominance
    "pbm": (0.16, 0.0, 0.1, 0.0, 0.0, 0.1, 0.7),
    "fvɱ": (0.14, 0.1, 0.0, 0.1, 0.3, 0.1, 0.9),
    "wʋβɥ": (0.16, 0.15, 1.0, 0.0, 0.0, 0.1, 2.0),
    "szɕʑ": (0.1, 0.35, 0.0, 0.3, 0.9, 0.5, 2.2),
    "ʃʒʂʐ": (0.14, 0.35, 0.5, 0.0, 0.9, 0.5, 2.6),
    "θð": (0.2, 0.35, 0.0, 0.1, 0.5, 1.0, 0.8),
    "tdnʈɖɳ": (0.18, 0.3, 0.0, 0.15, 0.4, 0.9, 1.1),
    "lɫɭʎ": (0.27, 0.35, 0.0, 0.15, 0.2, 1.0, 0.5),
    "rɹɾɻɽ": (0.24, 0.3, 0.3, 0.0, 0.2, 0.7, 0.5),
    "jɲcçɟ": (0.2, 0.35, 0.0, 0.4, 0.3, 0.5, 0.5),
    "kgɡŋxɣqχʁʀhɦʔħʕ": (0.32, 0.3, 0.0, 0.05, 0.0, 0.3, 0.25),
}
CLOSURES = frozenset("pbm")
BITES = frozenset("fvɱ")
_REST = (0.0, 0.0, 0.0, 0.0, 0.0, 0.2)
_LEAD = np.array([0.03, 0.04, 0.075, 0.05, 0.03, 0.02])  # seconds by which articulators lead the sound
_REACH = np.array([0.055, 0.05, 0.08, 0.07, 0.05, 0.05])  # seconds over which dominance fades
_TARGETS: dict[str, tuple[np.ndarray, float]] = {
    **{symbol: (np.array([*values, 0.15, 0.15]), 1.0) for symbol, values in _VOWELS.items()},
    **{s: (np.array(values[:6]), values[6]) for symbols, values in _CONSONANTS.items() for s in symbols},
}


@dataclass(frozen=True)
class Phone:
    """One phoneme in a voice: an IPA symbol ("" is silence), begin and end in seconds, and whether it is stressed."""

    symbol: str
    start: float
    end: float
    stressed: bool = False


def is_vowel(symbol: str) -> bool:
    """Returns whether an IPA symbol is a vowel that the visemes know."""
    return symbol in _VOWELS


def split_phones(text: str, start: float, end: float) -> list[Phone]:
    """Returns the phones of an IPA string, such as 'aɪ' or 'tʃ', from `start` to `end`; signs are left out."""
    symbols = [symbol for symbol in text if symbol in _TARGETS]
    stressed = "ˈ" in text
    if not symbols:
        return [Phone("", start, end)]
    edges = np.linspace(start, end, len(symbols) + 1)
    return [Phone(s, float(a), float(b), stressed) for s, a, b in zip(symbols, edges, edges[1:], strict=False)]


def phone_lines(phones: list[Phone]) -> str:
    """Returns the phones as a record keeps them: "begin end symbol" per line, without silences."""
    return "\n".join(f"{phone.start:.3f} {phone.end:.3f} {phone.symbol}" for phone in phones if phone.symbol)


def articulate(
    phones: list[Phone], seconds: float, energy: np.ndarray | None = None, effort: float = 1.0
) -> np.ndarray:
    """Returns how a mouth moves for a voice.

    Args:
        phones: the voice's phonemes, in order.
        seconds: length of the voice.
        energy: (N,) loudness of the voice at `RATE`, about 1 on average; louder vowels open wider.
        effort: how clearly the speaker articulates; 1 is normal.

    Returns:
        (N, 8) float32, N = round(seconds * RATE): `ARTICULATORS`, then the closure of the lips and the lip bite.
    """
    time = (np.arange(round(seconds * RATE)) + 0.5) / RATE
    total, weight = np.zeros((len(time), 6)), np.full((len(time), 6), 1e-6)
    closure, bite = np.zeros(len(time)), np.zeros(len(time))
    for phone in _with_pauses(phones, seconds):
        target, dominance = _TARGETS.get(phone.symbol, (np.array(_REST), 0.9))
        if phone.symbol == "" and phone.end - phone.start < 0.12:
            dominance = 0.15
        stress = 1.15 if phone.stressed else 1.0
        near = slice(*np.clip([int((phone.start - 0.5) * RATE), int((phone.end + 0.5) * RATE)], 0, len(time)))
        shifted = time[near, None] + _LEAD
        outside = np.maximum(np.maximum(phone.start - shifted, shifted - phone.end), 0)
        pull = dominance * np.exp(-(outside / _REACH)) * min((phone.end - phone.start) / 0.07, 1.6) ** 0.5
        pull = pull * _importance(phone.symbol)
        total[near] += pull * np.concatenate([target[:2] * stress, target[2:]])
        weight[near] += pull
        if phone.symbol in CLOSURES:
            closure[near] = np.maximum(closure[near], _hold(time[near], phone, 0.055, 0.045))
        if phone.symbol in BITES:
            bite[near] = np.maximum(bite[near], _hold(time[near], phone, 0.06, 0.055))
    moved = total / weight
    loud = np.ones(len(time)) if energy is None else np.interp(time, (np.arange(len(energy)) + 0.5) / RATE, energy)
    moved[:, 0] *= effort * np.clip(0.75 + 0.25 * loud, 0.4, 1.4)
    moved[:, 1] *= 0.5 + 0.5 * effort
    return np.column_stack([_smooth(moved, 0.022), closure, bite]).astype(np.float32)


def _importance(symbol: str) -> np.ndarray:
    """Returns how much a phoneme cares for each articulator: rounded vowels for the rounding, s for the teeth."""
    weight = np.ones(6)
    if symbol in _TARGETS:
        target = _TARGETS[symbol][0]
        weight[2] = 0.5 + 1.5 * target[2]
        weight[3] = 0.6 + 0.9 * target[3]
        weight[4] = 0.4 + 1.2 * target[4]
    return weight


def _with_pauses(phones: list[Phone], seconds: float) -> list[Phone]:
    """Returns the phones with a silence wherever none is."""
    filled, end = [], -1.0
    for phone in phones:
        if phone.start > end + 0.005:
            filled.append(Phone("", end, phone.start))
        filled.append(phone)
        end = max(end, phone.end)
    return [*filled, Phone("", end, max(end, seconds) + 1.0)]


def _hold(time: np.ndarray, phone: Phone, before: float, after: float) -> np.ndarray:
    """Returns 1 while the lips hold a consonant and ramps before and after; held for two frames of a film at least."""
    start, end = phone.start - 0.02, max(phone.end - 0.012, phone.start + 0.045)
    rise = np.clip((time - start + before) / before, 0, 1)
    fall = np.clip((end + after - time) / after, 0, 1)
    ramp = np.minimum(rise, fall)
    return ramp * ramp * (3 - 2 * ramp)


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    reach = int(np.ceil(3 * sigma * RATE))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (sigma * RATE)) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, kernel, "valid") for column in padded.T], 1)


def sample_frames(track: np.ndarray, fps: float, frames: int) -> np.ndarray:
    """Returns an articulator track (N, 8) at the middle of each frame, (frames, 8)."""
    time = (np.arange(frames) + 0.5) / fps * RATE - 0.5
    return np.stack([np.interp(time, np.arange(len(track)), column) for column in track.T], 1)


def mouth_weights(moved: np.ndarray, smile: float = 0.0) -> dict[str, float]:
    """Returns the ARKit blend shapes of one moment of `articulate`, (8,); `smile` in [0, 1] is laid over it."""
    jaw, lips, rounded, spread, teeth, tongue, closure, bite = (float(v) for v in moved)
    open_ = 1 - closure
    drop = 0.58 * jaw
    shut = max(closure, 0.72 * bite, 0.9 * rounded)  # rounded lips come together
    apart = lips * open_ * (1 - 0.8 * bite)
    return _both(
        {
            "mouthLowerDown": (0.32 * apart + 0.30 * teeth) * open_ * (1 - bite) * (1 - 0.6 * rounded),
            "mouthUpperUp": (0.16 * apart + 0.16 * teeth + 0.3 * bite) * open_ * (1 - 0.6 * rounded),
            "mouthStretch": 0.35 * spread * open_,
            "mouthSmile": 0.14 * spread * open_ + 0.65 * smile * (1 - 0.7 * rounded),
            "mouthPress": 0.22 * closure,
            "cheekSquint": 0.45 * smile,
        }
    ) | {
        "jawOpen": drop,
        "mouthClose": drop * shut,
        "mouthPucker": 0.62 * rounded * (1 - 0.4 * jaw),
        "mouthFunnel": 0.12 * rounded * (0.3 + 0.7 * min(jaw * 1.5, 1)) * open_ + 0.12 * teeth * rounded,
        "mouthRollLower": 0.18 * closure + 0.5 * bite,
        "mouthRollUpper": 0.12 * closure,
        "mouthShrugUpper": 0.1 * bite,
    }


def _both(weights: dict[str, float]) -> dict[str, float]:
    return {f"{name}{side}": value for name, value in weights.items() for side in ("Left", "Right")}
