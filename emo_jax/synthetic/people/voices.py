"""Voices that come with the times of their phonemes: espeak-ng, flite and hibari, where the machine has them."""

from __future__ import annotations

import functools
import importlib.util
import math
import re
import shutil
import subprocess
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import signal

from emo_jax.media.timing import SAMPLE_RATE
from emo_jax.synthetic.espeak import SENTENCES, VARIANTS, speak_with_phonemes
from emo_jax.synthetic.people.visemes import Phone, split_phones

FLITE_VOICES = ("slt", "rms", "awb", "kal16")
_ENGLISH = """
about above after again agree animal answer apple autumn baby balloon basket beautiful because become before
begin behind believe bell better between big bird blue boat body book both bottle bowl box bread breakfast bring brother
brown build business buy call camera camp carry chair change cheap child choose church city clean cloud coffee come cup
dance dark daughter deep desk different dinner doctor dream drive early earth easy enough evening every example family
famous farm fast father feather feel few find fire first fish five floor flower follow food forest forget four free
fresh friend from full funny future garden give glove good group grow happy have heavy help home hope house how human
hundred idea imagine important improve jump keep lamp language laugh leave lemon library life light like little live
lovely machine make many maybe memory middle milk minute mirror moment money month moon more morning mother mountain
mouth move movie much music name need never night nothing number ocean of off often old open orange other over page
paper park people perhaps person phone piano picture place plan please poem possible prefer problem promise purple push
question quick rabbit rain remember river room rough rubber same save school sea seven shape sheep shoe show simple sing
small smile smooth some song soup speak spring stop story street strong summer sugar super sweet table talk team thank
thing think thumb time today together tomorrow train travel tree trip true umbrella under until up use valley very
village visit voice wait walk warm watch water way weather welcome what where which whisper window winter wish with
woman wonder word work world write yellow young""".split()
_PAIRS = """
aa:ɑ ae:æ ah:ʌ ao:ɔ aw:aʊ ax:ə ay:aɪ b:b ch:tʃ d:d dh:ð eh:ɛ er:ɜɹ ey:eɪ f:f g:g hh:h ih:ɪ iy:i jh:dʒ
k:k l:l m:m n:n ng:ŋ ow:oʊ oy:ɔɪ p:p r:ɹ s:s sh:ʃ t:t th:θ uh:ʊ uw:u v:v w:w y:j z:z zh:ʒ"""
_FLITE = {name: symbol for name, _, symbol in (pair.partition(":") for pair in _PAIRS.split())}
_HIBARI = {
    "A": "eɪ",
    "I": "aɪ",
    "O": "oʊ",
    "Q": "əʊ",
    "W": "aʊ",
    "Y": "ɔɪ",
    "ʤ": "dʒ",
    "ʧ": "tʃ",
    "ᵊ": "ə",
    "ᵻ": "ɪ",
    "T": "ɾ",
}


@dataclass(frozen=True, eq=False)
class Voice:
    """Speech and its phonemes: `sound` float32 (samples,) at 16 kHz."""

    sound: np.ndarray
    phones: list[Phone]
    source: str


def engines() -> tuple[str, ...]:
    """Returns the names of the speech synthesisers of this machine."""
    found = {
        "espeak": importlib.util.find_spec("espeakng_loader") is not None,
        "flite": shutil.which("flite") is not None,
        "hibari": all(importlib.util.find_spec(name) is not None for name in ("hibari", "onnxruntime")),
    }
    return tuple(name for name, here in found.items() if here)


def check_voices() -> None:
    """Raises ValueError, which names a package to install, if no speech synthesiser is on this machine."""
    if not engines():
        raise ValueError("no speech synthesiser is on this machine: pip install espeakng-loader (extra: people)")


def make_sentence(rng: np.random.Generator, language: str) -> str:
    """Returns some words of a language; English ones come from a long list."""
    if rng.random() < 0.25:
        return str(rng.choice(SENTENCES[language]))
    words = _ENGLISH if language == "en-us" else " ".join(SENTENCES[language]).replace("?", "").replace(".", "").split()
    chosen = rng.choice(words, int(rng.integers(4, 10)))
    return " ".join(chosen).capitalize() + ("," if rng.random() < 0.2 else "?" if rng.random() < 0.15 else ".")


def speak(text: str, engine: str, voice: str = "en-us", rate: int = 165, pitch: int = 50, seed: int = 0) -> Voice:
    """Speaks a text.

    Args:
        text: what to say.
        engine: one of `engines()`.
        voice: espeak-ng's voice such as "de+f4", or one of `FLITE_VOICES`; hibari has one voice.
        rate: words a minute.
        pitch: of espeak-ng, 0 to 99.
        seed: of hibari's noise.

    Raises:
        ValueError: if the engine is missing.
        RuntimeError or ValueError: if it fails.
    """
    if engine not in engines():
        raise ValueError(
            f"the speech synthesiser {engine!r} is missing; this machine has {', '.join(engines()) or 'none'}"
        )
    if engine == "espeak":
        return _speak_espeak(text, voice, rate, pitch)
    if engine == "flite":
        return _speak_flite(text, voice, rate)
    return _speak_hibari(text, rate, seed)


def speak_passage(rng: np.random.Generator, seconds: float) -> Voice:
    """Returns sentences of one random speaker with pauses between them, as long as `seconds` or longer."""
    check_voices()
    here = engines()
    shares = np.array([{"espeak": 0.5, "flite": 0.25, "hibari": 0.25}[name] for name in here])
    engine = str(rng.choice(here, p=shares / shares.sum()))
    language = str(rng.choice(list(SENTENCES))) if engine == "espeak" and rng.random() < 0.75 else "en-us"
    voice = language + str(rng.choice(VARIANTS)) if engine == "espeak" else str(rng.choice(FLITE_VOICES))
    rate, pitch = int(rng.integers(135, 195)), int(rng.integers(15, 90))
    parts, phones, length = [], [], 0.0
    while length < seconds:
        pause = rng.uniform(0.05, 0.35) if not parts else rng.uniform(0.25, 0.9)
        spoken = trim(speak(make_sentence(rng, language), engine, voice, rate, pitch, int(rng.integers(1 << 30))))
        parts += [np.zeros(int(pause * SAMPLE_RATE), np.float32), spoken.sound * rng.uniform(0.8, 1.1)]
        length += int(pause * SAMPLE_RATE) / SAMPLE_RATE
        phones += shift_phones(spoken.phones, length)
        length += len(spoken.sound) / SAMPLE_RATE
    return Voice(
        np.concatenate(parts).astype(np.float32), phones, f"{engine} {voice if engine != 'hibari' else ''}".strip()
    )


def shift_phones(phones: list[Phone], seconds: float) -> list[Phone]:
    """Returns the phones, later by `seconds`."""
    return [Phone(p.symbol, p.start + seconds, p.end + seconds, p.stressed) for p in phones]


def trim(voice: Voice) -> Voice:
    """Cuts silence at both ends to 30 ms."""
    loud = np.flatnonzero(np.abs(voice.sound) > 2e-3)
    if not loud.size:
        return voice
    first, last = max(loud[0] - 480, 0), min(loud[-1] + 480, len(voice.sound))
    phones = [
        p
        for p in shift_phones(voice.phones, -first / SAMPLE_RATE)
        if p.end > 0 and p.start < (last - first) / SAMPLE_RATE
    ]
    return Voice(voice.sound[first:last], phones, voice.source)


def _resample(sound: np.ndarray, rate: int) -> np.ndarray:
    divisor = math.gcd(rate, SAMPLE_RATE)
    return signal.resample_poly(sound, SAMPLE_RATE // divisor, rate // divisor).astype(np.float32)


def _speak_espeak(text: str, voice: str, rate: int, pitch: int) -> Voice:
    native, sound, events = speak_with_phonemes(text, voice, rate, pitch)
    sound = sound.astype(np.float32) / 32768
    ends = [milliseconds / 1000 for milliseconds, _ in events[1:]] + [len(sound) / native]
    phones = [p for (start, name), end in zip(events, ends, strict=True) for p in split_phones(name, start / 1000, end)]
    return Voice(_resample(sound, native), phones, f"espeak {voice}")


def _speak_flite(text: str, voice: str, rate: int) -> Voice:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "voice.wav"
        stretch = f"duration_stretch={165 / rate:.3f}"
        command = ["flite", "-voice", voice, "--setf", stretch, "-psdur", "-t", text, "-o", str(path)]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        if done.returncode or not path.is_file():
            raise RuntimeError(done.stderr.strip() or f"flite failed ({done.returncode})")
        with wave.open(str(path)) as stream:
            native = stream.getframerate()
            sound = np.frombuffer(stream.readframes(stream.getnframes()), "<i2").astype(np.float32) / 32768
    phones, start = [], 0.0
    for name, end in re.findall(r"(\S+):([\d.]+)", done.stdout):
        phones += split_phones(_FLITE.get(str(name), ""), start, float(end))
        start = float(end)
    return Voice(_resample(sound, native), phones, f"flite {voice}")


@functools.cache
def _hibari():
    """Returns hibari's front end and a session of its network that also gives the frames of each phoneme."""
    import hibari  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]

    front = hibari.Hibari()
    name = (
        b"/Clip_output_0"  # frames per phoneme, inside the network; a second graph message in the file adds an output
    )
    value = b"\x0a" + bytes([len(name)]) + name
    added = b"\x62" + bytes([len(value)]) + value
    model = Path(front.model_path).read_bytes() + b"\x3a" + bytes([len(added)]) + added
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return front, onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _speak_hibari(text: str, rate: int, seed: int) -> Voice:
    from hibari import dsp  # pyright: ignore[reportMissingImports]

    front, session = _hibari()
    rng, sounds, phones, length = np.random.default_rng(seed), [], [], 0.0
    for sentence in front.phonemize(text):
        known = [symbol for symbol in sentence if symbol in front.vocab]
        inputs = {"ids": np.array([front.ids(sentence)], np.int64), "speed": np.array([rate / 165], np.float32)}
        *tracks, frames = (np.asarray(output) for output in session.run(None, inputs))
        sound = dsp.synth(*(track[0] for track in tracks), rng)  # pyright: ignore[reportCallIssue]
        edges = np.concatenate([[0], np.cumsum(frames.ravel())])
        edges = length + edges / edges[-1] * len(sound) / dsp.SR
        phones += _hibari_phones(known, edges[1:])
        sounds.append(sound)
        length += len(sound) / dsp.SR
    return Voice(_resample(np.concatenate(sounds), dsp.SR), phones, "hibari")


def _hibari_phones(symbols: list[str], edges: np.ndarray) -> list[Phone]:
    """Returns the phones of hibari's symbols; the times of stress signs and spaces go to their neighbours."""
    phones, begin, stressed = [], None, False
    for symbol, start, end in zip(symbols, edges, edges[1:], strict=False):
        begin = float(start) if begin is None else begin
        if symbol in "ˈˌ":
            stressed = symbol == "ˈ"
            continue
        if symbol == " ":
            if phones:
                last = phones.pop()
                phones.append(Phone(last.symbol, last.start, float(end), last.stressed))
        else:
            phones += split_phones(("ˈ" if stressed else "") + _HIBARI.get(symbol, symbol), begin, float(end))
            stressed = False
        begin = None
    return phones
