"""Speech by espeak-ng, from the package espeakng_loader or the program `espeak-ng`, if either is installed."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import math
import shutil
import subprocess
import sys
import wave

import numpy as np
from scipy import signal

from emo_jax.media.timing import SAMPLE_RATE

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
VARIANTS = ("", "+m1", "+m3", "+m5", "+m7", "+f1", "+f4", "+croak")  # f2, f3 and f5 are not deterministic


@functools.cache
def espeak_available() -> bool:
    """Returns whether espeak-ng is installed."""
    return _has_package() or shutil.which("espeak-ng") is not None


@functools.cache
def _has_package() -> bool:
    return importlib.util.find_spec("espeakng_loader") is not None


def espeak(text: str, voice: str = "en-us", rate: int = 170, pitch: int = 50) -> np.ndarray:
    """Speaks a text.

    Args:
        text: the text.
        voice: name of an espeak-ng voice.
        rate: words per minute, 80 to 450.
        pitch: 0 to 99.

    Returns:
        float32 (samples,) at 16 kHz.

    Raises:
        RuntimeError: espeak-ng is not installed.
        ValueError: espeak-ng has no such voice.
    """
    if not espeak_available():
        raise RuntimeError("espeak-ng is not installed: pip install espeakng-loader, or install the program espeak-ng")
    speak = speak_with_phonemes if _has_package() else _speak_program
    native, sound, *_ = speak(text, voice, rate, pitch)
    divisor = math.gcd(native, SAMPLE_RATE)
    return signal.resample_poly(sound / 32768, SAMPLE_RATE // divisor, native // divisor).astype(np.float32)


def espeak_passage(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Speaks random sentences with one random voice and pauses of 0.3-0.8 s, float32 (round(seconds * 16000),)."""
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
        audible = np.flatnonzero(np.abs(sound) > 1e-3)
        parts += [pause, sound[audible[0] : audible[-1] + 1] if audible.size else sound]
        length += len(parts[-1]) + len(pause)
    return np.concatenate(parts)[:count]


_CHILD = """
import ctypes, json, sys
library_path, data, voice, rate, pitch = sys.argv[1:]
library, chunks, phones = ctypes.CDLL(library_path), [], []

class Name(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]

class Event(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("uid", ctypes.c_uint), ("text", ctypes.c_int), ("length", ctypes.c_int),
                ("milliseconds", ctypes.c_int), ("sample", ctypes.c_int), ("user", ctypes.c_void_p), ("id", Name)]

@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))
def collect(samples, count, events):
    if samples and count > 0:
        chunks.append(ctypes.string_at(samples, 2 * count))
    index = 0
    while events[index].type:
        if events[index].type == 7:
            phones.append((events[index].milliseconds, events[index].id.string.decode("utf8", "replace")))
        index += 1
    return 0

native = library.espeak_Initialize(1, 0, data.encode(), 3 | 1 << 15)
if native <= 0:
    sys.exit("espeak-ng could not start; reinstall the package espeakng-loader")
try:
    ctypes.CDLL(None).srand(1)  # espeak-ng draws its noise from the C library
except (AttributeError, OSError, TypeError):
    pass
library.espeak_SetSynthCallback(collect)
if library.espeak_SetVoiceByName(voice.encode()) != 0:
    sys.exit(3)
library.espeak_SetParameter(1, int(rate), 0)
library.espeak_SetParameter(3, int(pitch), 0)
text = sys.stdin.buffer.read() + bytes(1)
library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, 1, None, None)
library.espeak_Synchronize()
head = json.dumps([native, phones]).encode()
sys.stdout.buffer.write(len(head).to_bytes(4, "little") + head + b"".join(chunks))
"""


def speak_with_phonemes(text: str, voice: str, rate: int, pitch: int) -> tuple[int, np.ndarray, list[tuple[int, str]]]:
    """Speaks a text with the library of espeakng_loader.

    The library runs in a separate process: its globals outlive a sentence, and reloading it can crash.

    Args:
        text: the text.
        voice: name of an espeak-ng voice.
        rate: words per minute, 80 to 450.
        pitch: 0 to 99.

    Returns:
        The sample rate in Hz, int16 samples (samples,), and (start in milliseconds, IPA name) of each phoneme.

    Raises:
        ValueError: espeak-ng has no such voice, or fails.
    """
    import espeakng_loader

    paths = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    command = [sys.executable, "-I", "-S", "-c", _CHILD, *map(str, paths), voice, str(rate), str(pitch)]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    if done.returncode == 3:
        raise ValueError(f"espeak-ng doesn't know the voice {voice!r}; `espeak-ng --voices` lists them")
    if done.returncode:
        raise ValueError(done.stderr.decode(errors="replace").strip() or f"espeak-ng failed ({done.returncode})")
    split = 4 + int.from_bytes(done.stdout[:4], "little")
    native, events = json.loads(done.stdout[4:split])
    return native, np.frombuffer(done.stdout[split:], "<i2"), [(start, name) for start, name in events]


def _speak_program(text: str, voice: str, rate: int, pitch: int) -> tuple[int, np.ndarray]:
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(rate), "-p", str(pitch), text]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        raise ValueError(
            f"espeak-ng could not speak with the voice {voice!r}: {done.stderr.decode(errors='replace').strip()}"
        )
    with wave.open(io.BytesIO(done.stdout)) as stream:
        return stream.getframerate(), np.frombuffer(done.stdout[44:], "<i2")
