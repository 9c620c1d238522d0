"""Speech of espeak-ng, if the machine has it: the package espeakng_loader, or the program `espeak-ng`."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import io
import math
import os
import shutil
import subprocess
import wave
from collections.abc import Iterator

import numpy as np
from scipy import signal

from emo_jax.data.audio import SAMPLE_RATE

SENTENCES: dict[str, tuple[str, ...]] = {
    "en-us": (
        "The morning train was late again.",
        "She sells fresh bread near the old harbour.",
        "Could you open the window, please?",
        "We walked along the river until it was dark.",
        "Nobody knew where the music came from.",
        "I think it will rain tomorrow.",
    ),
    "de": (
        "Der Zug kommt heute etwas später.",
        "Wir gehen am Abend durch den Park.",
        "Kannst du mir bitte das Buch geben?",
        "Die Kinder spielen draußen im Schnee.",
        "Morgen früh fahren wir ans Meer.",
    ),
    "fr": (
        "Le soleil se lève sur la vieille ville.",
        "Nous avons mangé une bonne soupe.",
        "Où est la gare, s'il vous plaît?",
        "Elle chante toujours sous la pluie.",
        "Il faut partir avant midi.",
    ),
    "es": (
        "El niño corre por la playa.",
        "Mañana vamos a visitar a mi abuela.",
        "¿Dónde está la biblioteca?",
        "Me gusta mucho el café con leche.",
        "La luna brilla sobre el mar.",
    ),
    "it": (
        "La casa è vicina al mare.",
        "Domani mattina andiamo al mercato.",
        "Mi piace molto cantare.",
        "Il gatto dorme sulla sedia.",
    ),
    "pl": (
        "Jutro pojedziemy nad morze.",
        "Gdzie jest moja książka?",
        "Dzieci bawią się w ogrodzie.",
        "Lubię czytać wieczorem.",
    ),
    "tr": (
        "Bugün hava çok güzel.",
        "Yarın sabah denize gidiyoruz.",
        "Kitabım nerede acaba?",
        "Çocuklar bahçede oynuyor.",
    ),
    "fi": (
        "Aurinko nousee meren yli.",
        "Missä on minun kirjani?",
        "Lapset leikkivät puistossa.",
        "Huomenna menemme metsään.",
    ),
}
VARIANTS = ("", "+m1", "+m3", "+m5", "+m7", "+f1", "+f4", "+croak")  # f2, f3, f5 differ from run to run


@functools.cache
def espeak_available() -> bool:
    """Whether `espeak` can speak on this machine."""
    return _has_package() or shutil.which("espeak-ng") is not None


@functools.cache
def _has_package() -> bool:
    return importlib.util.find_spec("espeakng_loader") is not None


def espeak(text: str, voice: str = "en-us", rate: int = 170, pitch: int = 50) -> np.ndarray:
    """Speak a text: float32 (samples,), 16 kHz. `rate` is in words a minute (80-450), `pitch` in 0-99.

    Raises RuntimeError where espeak-ng is missing, and ValueError if it doesn't know the voice.
    """
    if not espeak_available():
        raise RuntimeError(
            "espeak-ng is not on this machine: pip install espeakng-loader, or install the program espeak-ng"
        )
    native, sound = (
        _speak_library(text, voice, rate, pitch) if _has_package() else _speak_program(text, voice, rate, pitch)
    )
    divisor = math.gcd(native, SAMPLE_RATE)
    return signal.resample_poly(sound / 32768, SAMPLE_RATE // divisor, native // divisor).astype(np.float32)


def espeak_passage(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Sentences of one random voice with pauses of 0.3-0.8 s between them: float32 (round(seconds * 16000),)."""
    language = str(rng.choice(list(SENTENCES)))
    voice = language + str(rng.choice(VARIANTS))
    rate, pitch = int(rng.integers(130, 190)), int(rng.integers(20, 85))
    count, parts, length = round(seconds * SAMPLE_RATE), [], 0
    while length < count:
        pause = np.zeros(
            int(rng.uniform(0.05, 0.3) * SAMPLE_RATE) if not parts else int(rng.uniform(0.3, 0.8) * SAMPLE_RATE),
            np.float32,
        )
        sound = espeak(str(rng.choice(SENTENCES[language])), voice, rate, pitch)
        heard = np.flatnonzero(np.abs(sound) > 1e-3)
        parts += [pause, sound[heard[0] : heard[-1] + 1] if heard.size else sound]
        length += len(parts[-1]) + len(pause)
    return np.concatenate(parts)[:count]


@contextlib.contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """The package's library and its sampling rate, loaded anew: its globals would let one sentence colour the next."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        rate = library.espeak_Initialize(
            1, 0, espeakng_loader.get_data_path().encode(), 1 << 15
        )  # hand the sound back, never exit
        if rate <= 0:
            raise RuntimeError("espeak-ng could not start; reinstall the package espeakng-loader")
        yield library, rate
        library.espeak_Terminate()
    finally:
        if os.name == "posix":
            import _ctypes

            _ctypes.dlclose(library._handle)


def _speak_library(text: str, voice: str, rate: int, pitch: int) -> tuple[int, np.ndarray]:
    chunks = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples, count, events):
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    with _library() as (library, native):
        if os.name == "posix":
            ctypes.CDLL(None).srand(1)  # espeak-ng draws its noise from the C library
        library.espeak_SetSynthCallback(collect)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng doesn't know the voice {voice!r}; `espeak-ng --voices` lists them")
        library.espeak_SetParameter(1, rate, 0)
        library.espeak_SetParameter(3, pitch, 0)
        encoded = text.encode() + b"\0"
        library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, 1, None, None)
        library.espeak_Synchronize()
    return native, np.concatenate(chunks) if chunks else np.zeros(0, np.int16)


def _speak_program(text: str, voice: str, rate: int, pitch: int) -> tuple[int, np.ndarray]:
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(rate), "-p", str(pitch), text]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        raise ValueError(
            f"espeak-ng could not speak with the voice {voice!r}: {done.stderr.decode(errors='replace').strip()}"
        )
    with wave.open(io.BytesIO(done.stdout)) as stream:
        return stream.getframerate(), np.frombuffer(done.stdout[44:], "<i2")
