"""Sound: of any container at 16 kHz mono, as a WAV file, and the windows of it that belong to video frames.

Every place that turns frames into samples or back uses the functions below, in exact rational arithmetic, so that
training, sampling and the written file agree on where a frame's sound lies.
"""

from __future__ import annotations

import math
import numbers
import os
import wave
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

SAMPLE_RATE = 16000
"""Samples per second of all sound in this project (wav2vec 2.0's rate)."""

AUDIO_MARGIN = 256
"""Samples added on both sides of every window: more than half of the 400 samples wav2vec 2.0 sees at once."""

PCM_KINDS = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
BLOCK = 1 << 16  # input samples resampled at a time
MAX_PEAK = 16.0  # float sound louder than this was never scaled to [-1, 1]
ZERO_CROSSINGS = 32  # of the resampling filter, on each side
KAISER_BETA = 8.0  # about 80 dB of stop band
CUTOFF = 0.92  # of the lower Nyquist rate; the filter is flat to 0.84 and closed at 1.0


def exact_fps(fps: float | Fraction) -> Fraction:
    """The frame rate as an exact fraction: a float is read as the nearest one with a denominator up to 1001.

    So 29.97 is 2997/100 (as a float32 too), 30000 / 1001 is itself, 25.0 is 25. Raises ValueError unless fps > 0.
    """
    known = isinstance(fps, (numbers.Real, np.number)) and math.isfinite(fps)
    exact = Fraction(fps) if isinstance(fps, numbers.Rational) else Fraction(float(fps) if known else 0)
    if not isinstance(fps, numbers.Rational):
        exact = exact.limit_denominator(1001)
    if exact <= 0:
        raise ValueError(f"fps is {fps!r}; expected a frame rate above 0, such as 25 or 29.97")
    return exact


def frame_count(samples: int, fps: float | Fraction) -> int:
    """Video frames that cover `samples` samples at 16 kHz: ceil(samples * fps / 16000), so no sound is cut off."""
    return math.ceil(int(samples) * exact_fps(fps) / SAMPLE_RATE)


def window_bounds(start_frame: int, frames: int, fps: float | Fraction) -> tuple[int, int]:
    """(start, length) in samples of the sound of `frames` frames from `start_frame` on, margins included.

    start = round(start_frame * 16000 / fps) - AUDIO_MARGIN, negative near the beginning (see `cut`);
    length = ceil(frames * 16000 / fps) + 2 * AUDIO_MARGIN, which depends on `frames` and `fps` only.
    """
    per_frame = SAMPLE_RATE / exact_fps(fps)
    return round(start_frame * per_frame) - AUDIO_MARGIN, math.ceil(frames * per_frame) + 2 * AUDIO_MARGIN


def audio_context(clip) -> float:
    """`config.clip`'s audio_context, seconds that training hears besides on both sides; older configs have none."""
    return clip.get("audio_context", 0.0)


def context_samples(seconds: float) -> int:
    """Samples of so much context, on one side."""
    return round(seconds * SAMPLE_RATE)


def cut(audio: np.ndarray, start: int, length: int) -> np.ndarray:
    """Samples [start, start + length) of `audio` (samples,), zeros where that lies outside it; same dtype, a copy."""
    window = np.zeros(length, audio.dtype)
    first, last = max(start, 0), min(start + length, len(audio))
    if first < last:
        window[first - start : last - start] = audio[first:last]
    return window


def require_frames(audio: np.ndarray, fps: float | Fraction, name: object = "the audio") -> int:
    """`frame_count` of `audio` (samples,), or ValueError where it does not fill one video frame."""
    if len(audio) * exact_fps(fps) < SAMPLE_RATE:
        need = 1000 / float(exact_fps(fps))
        raise ValueError(
            f"{name} lasts {1000 * len(audio) / SAMPLE_RATE:.1f} ms; expected at least one video frame "
            f"({need:.1f} ms at {float(fps):g} fps): give a longer recording"
        )
    return frame_count(len(audio), fps)


def quantise(sound: np.ndarray) -> np.ndarray:
    """Sound in [-1, 1], clipped there, as int16."""
    return np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)


def write_wav(path: str | os.PathLike, sound: np.ndarray) -> None:
    """Writes sound (samples,) in [-1, 1], 16 kHz, as a 16-bit mono WAV file."""
    with wave.open(os.fspath(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(quantise(sound).astype("<i2").tobytes())


def load_audio(path: str | os.PathLike, rate: int = SAMPLE_RATE, align_to_video: bool = False) -> np.ndarray:
    """The first sound track of an audio or video file as float32 (samples,), mono, `rate` Hz, in [-1, 1].

    Any container, codec, rate, bit depth and channel count that FFmpeg decodes. Channels are averaged (which cannot
    exceed full scale) before a band-limited, zero-delay resampler; the result has round(duration * rate) samples,
    duration being that of the decoded samples. Sound is decoded in blocks: memory beyond the result stays small.
    Values beyond full scale (lossy codecs and float files overshoot) are clipped. Damaged packets are skipped.
    With `align_to_video` sample 0 is the time of the first video frame: silence is put in front of, or sound cut from,
    a track that starts later or earlier.

    Raises ValueError, one line that names the file: missing, a directory, empty, not media, no sound track, no
    samples, NaN or infinite samples, or float samples far outside [-1, 1].
    """
    data = bytearray()  # grows in place, so the peak is the result and not twice the result
    with open_media(path) as container:
        if not container.streams.audio:
            raise ValueError(f"{path} has no sound track; give a file with one (WAV, MP3, M4A, MP4, ...)")
        skip = _lag(container, rate) if align_to_video else 0
        data.extend(bytes(4 * max(-skip, 0)))
        lead = len(data)
        for piece in _resampled(_decode_mono(container, path), rate):
            data.extend(np.clip(piece, -1.0, 1.0).astype(np.float32).tobytes())
    if len(data) == lead:
        raise ValueError(f"{path} has a sound track with no samples (cut off or empty); export it again")
    audio = np.frombuffer(data, np.float32)[max(skip, 0) :]
    if not len(audio):
        raise ValueError(f"the sound of {path} ends before its first video frame; give a file where they overlap")
    return audio


def open_media(path: str | os.PathLike):
    """An open PyAV container for a local file, or ValueError (one line) if there is none that FFmpeg can read."""
    import av

    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{path} is a directory; give an audio or video file")
    if not file.is_file():
        raise ValueError(f"{path} does not exist; give the path of an audio or video file")
    if not file.stat().st_size:
        raise ValueError(f"{path} is empty (0 bytes); export or download it again")
    try:
        # Absolute, so that a colon in the name is no protocol; files only, so that a playlist cannot reach the network.
        return av.open(os.path.abspath(file), options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{path} cannot be read as audio or video ({reason}): cut off, or no media file; convert it to WAV or MP4"
        ) from error


def decode_packets(container, stream, path) -> Iterator:
    """Decoded frames of one stream; damaged packets are skipped, a file that is mostly damage is a ValueError."""
    import av

    good = bad = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.error.FFmpegError:  # the file breaks off inside a packet
            break
        try:
            for frame in packet.decode():
                good += 1
                yield frame
        except av.error.EOFError:
            break
        except av.error.FFmpegError:
            bad += 1
    if bad > good:
        raise ValueError(f"{path} is damaged: {bad} packets could not be decoded, {good} could; export it again")


def _decode_mono(container, path) -> Iterator[tuple[int, np.ndarray]]:
    """(sample rate, float32 (samples,) mean of the channels) for each decoded frame."""
    for frame in decode_packets(container, container.streams.audio[0], path):
        mono = _to_float(_channels(frame)).mean(axis=0, dtype=np.float64).astype(np.float32)
        peak = np.abs(mono).max(initial=0.0)
        if not math.isfinite(peak):
            raise ValueError(f"{path} has NaN or infinite samples; export it again as 16-bit WAV")
        if peak > MAX_PEAK:
            raise ValueError(f"{path} is damaged or not scaled: samples up to {peak:g}, expected [-1, 1]; re-export it")
        yield frame.sample_rate, mono


def _channels(frame) -> np.ndarray:
    """(channels, samples) of a decoded frame. Not `to_ndarray`: with 8 channels PyAV 18 reads a ninth, and crashes."""
    channels, samples = frame.layout.nb_channels, frame.samples
    kind = PCM_KINDS[frame.format.packed.name]
    if frame.format.is_planar:
        return np.stack([np.frombuffer(plane, kind, samples) for plane in frame.planes[:channels]])
    return np.frombuffer(frame.planes[0], kind, samples * channels).reshape(samples, channels).T


def _to_float(values: np.ndarray) -> np.ndarray:
    """PCM of any depth to floats in [-1, 1]; unsigned 8-bit is centred at 128, 24-bit arrives as 32-bit."""
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128.0) / 128.0
    if values.dtype.kind == "i":
        return values.astype(np.float64) / -float(np.iinfo(values.dtype).min)
    return values


def _lag(container, rate: int) -> int:
    """Samples of sound that lie before the first video frame; negative where the sound starts later."""
    sound, video = container.streams.audio[0], next(iter(container.streams.video), None)
    if video is None or sound.start_time is None or video.start_time is None:
        return 0
    return round((video.start_time * video.time_base - sound.start_time * sound.time_base) * rate)


def _resampled(pieces: Iterable[tuple[int, np.ndarray]], rate: int) -> Iterator[np.ndarray]:
    """Blocks at `rate`; a stream that changes its own rate midway is resampled part by part."""
    resampler = None
    for source_rate, piece in pieces:
        if resampler is None or resampler.source != source_rate:
            if resampler is not None:
                yield from resampler.flush()
            resampler = BlockResampler(source_rate, rate)
        yield from resampler.feed(piece)
    if resampler is not None:
        yield from resampler.flush()


class BlockResampler:
    """Band-limited resampling of a stream: the same output as for the whole signal at once, in bounded memory.

    `feed` samples (n,) and `flush` at the end, each an iterator of float32 blocks; round(total * target / source)
    samples come out in all, with no delay. Blocks start at multiples of the reduced source rate, where input and
    output samples coincide, and are filtered with as much context on both sides as the filter is long.
    """

    def __init__(self, source: int, target: int):
        ratio = Fraction(target, source)
        self.source, self.up, self.down = source, ratio.numerator, ratio.denominator
        half = ZERO_CROSSINGS * max(self.up, self.down)
        self._taps = _low_pass(half, CUTOFF / max(self.up, self.down)) if ratio != 1 else None
        self._context = self.down * math.ceil(half / self.up / self.down)
        self._block = self.down * math.ceil(BLOCK / self.down)
        self._pieces, self._held = [np.zeros(self._context, np.float32)], self._context
        self._read = self._written = 0

    def feed(self, piece: np.ndarray) -> Iterator[np.ndarray]:
        self._read += len(piece)
        if self._taps is None:
            yield piece
            return
        self._pieces.append(piece)
        self._held += len(piece)
        if self._held >= self._block + 2 * self._context:
            yield from self._drain()

    def flush(self) -> Iterator[np.ndarray]:
        if self._taps is None:
            return
        missing = round(Fraction(self._read * self.up, self.down)) - self._written
        blocks = math.ceil(missing / (self._block // self.down * self.up))
        short = max(blocks * self._block + 2 * self._context - self._held, 0)
        self._pieces.append(np.zeros(short, np.float32))
        for block in self._drain():
            yield block[:missing]
            missing -= len(block[:missing])

    def _drain(self) -> Iterator[np.ndarray]:
        from scipy.signal import resample_poly

        held, first = np.concatenate(self._pieces), 0
        skip, size = self._context // self.down * self.up, self._block // self.down * self.up
        while len(held) - first >= self._block + 2 * self._context:
            window = held[first : first + self._block + 2 * self._context]
            yield resample_poly(window, self.up, self.down, window=self._taps)[skip : skip + size]
            self._written += size
            first += self._block
        self._pieces, self._held = [held[first:]], len(held) - first


def _low_pass(half: int, cutoff: float) -> np.ndarray:
    """Kaiser-windowed sinc, 2 * half + 1 taps of sum 1; cutoff as a share of the Nyquist rate."""
    taps = cutoff * np.sinc(cutoff * np.arange(-half, half + 1)) * np.kaiser(2 * half + 1, KAISER_BETA)
    return (taps / taps.sum()).astype(np.float32)
