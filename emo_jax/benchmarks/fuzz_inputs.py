"""Valid inputs of every kind that the fuzzer changes: small files and folders, which are made here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageCms

FPS = 25
SECONDS = 0.64
_PIXELS = {"width": 64, "height": 48, "pix_fmt": "yuv420p"}


def make_inputs(folder: Path) -> dict[str, list[Path]]:
    """Writes valid inputs to a folder and returns the paths of each kind; a path is a file or a folder."""
    return {kind: list(make(_new(folder / kind))) for kind, make in _MAKERS.items()}


def small_config() -> ConfigDict:
    """Returns the config of the smallest networks with every part."""
    from emo_jax.configs import tiny  # pyright: ignore[reportMissingImports]  # a folder of setup.cfg's package_dir

    config = tiny.get_config("speed")
    config.model.unet.update(channels=(16, 32), heads=2, groups=8)
    config.model.vae.update(channels=(8, 16, 32), decoder_channels=(8, 16, 32), groups=4, latent_channels=4)
    config.model.audio.update(bands=8, tokens=2, features=16, hidden=16)
    config.model.speed.features = 16
    config.model.locator_channels = (4, 4, 8, 8)
    config.clip.update(image_size=(64, 64), frames=4, motion_frames=2)
    config.sampling.update(steps=1, clips=1)
    return config


def picture(size: int = 48) -> np.ndarray:
    """Returns a picture with shapes and noise, uint8 (size, size, 3)."""
    rows, columns = np.mgrid[:size, :size] / size
    noise = np.random.default_rng(0).normal(0, 0.05, (size, size, 3))
    image = np.stack([rows, columns, (np.hypot(rows - 0.5, columns - 0.5) < 0.3) * 0.8], axis=-1)
    return (np.clip(image + noise, 0, 1) * 255).astype(np.uint8)


def voice(seconds: float = SECONDS, rate: int = 16000) -> np.ndarray:
    """Returns a sound of changing level, float32 (samples,)."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * 180 * time) * np.sin(2 * np.pi * 3 * time) ** 2).astype(np.float32)


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _pictures(folder: Path) -> Iterator[Path]:
    image = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = Image.fromarray(picture()[..., 0].astype(np.uint16) * 257)
    saved: tuple[tuple[str, Image.Image, dict[str, Any]], ...] = (
        ("rgb.png", image, dict(icc_profile=profile)),
        ("alpha.png", image.convert("RGBA"), {}),
        ("deep.png", deep, {}),
        ("palette.gif", image.quantize(16), dict(save_all=True, append_images=[image.quantize(8)])),
        ("exif.jpg", image, dict(exif=exif, icc_profile=profile)),
        ("cmyk.jpg", image.convert("CMYK"), {}),
        ("lossy.webp", image, dict(exif=exif)),
        ("plain.tiff", image, dict(compression="tiff_lzw")),
        ("plain.bmp", image, {}),
    )
    for name, converted, options in saved:
        converted.save(folder / name, **options)
        yield folder / name


def _sounds(folder: Path) -> Iterator[Path]:
    for name, codec, rate, layout in (
        ("pcm.wav", "pcm_s16le", 16000, "mono"),
        ("float.wav", "pcm_f32le", 22050, "stereo"),
        ("alaw.wav", "pcm_alaw", 8000, "mono"),
        ("lossless.flac", "flac", 44100, "stereo"),
        ("lossy.mp3", "mp3", 44100, "mono"),
        ("lossy.ogg", "libopus", 48000, "mono"),
        ("lossy.m4a", "aac", 32000, "stereo"),
        ("plain.aiff", "pcm_s16be", 16000, "mono"),
    ):
        if _has_encoder(codec):
            _encode(folder / name, audio=(codec, rate, layout))
            yield folder / name


def _videos(folder: Path) -> Iterator[Path]:
    for name, codec, sound in (
        ("plain.mp4", "libx264", ("aac", 32000, "mono")),
        ("silent.mov", "libx264", None),
        ("plain.mkv", "libx264", ("pcm_s16le", 16000, "mono")),
        ("plain.webm", "libvpx", ("libopus", 48000, "mono")),
        ("plain.avi", "mpeg4", ("mp3", 44100, "mono")),
        ("plain.ts", "mpeg2video", ("mp2", 44100, "mono")),
    ):
        if _has_encoder(codec) and (sound is None or _has_encoder(sound[0])):
            _encode(folder / name, audio=sound, video=codec)
            yield folder / name


def _has_encoder(name: str) -> bool:
    from av.codec.codec import Codec, UnknownCodecError

    try:
        return Codec(name, "w").is_encoder
    except UnknownCodecError:
        return False


def _encode(path: Path, audio: tuple[str, int, str] | None, video: str | None = None) -> None:
    """Encodes `voice` and `picture`s to a file, reproducibly."""
    import av
    from av.audio.frame import AudioFrame
    from av.video.frame import VideoFrame

    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        # Streams cannot be added once a packet is written.
        options = {"g": "4", "threads": "1"}
        stream: Any = container.add_stream(video, FPS, options=options, **_PIXELS) if video else None
        track: Any = container.add_stream(audio[0], audio[1], layout=audio[2]) if audio else None
        if stream is not None:
            image = np.concatenate([picture(), picture()[:, :16]], axis=1)
            for k in range(round(SECONDS * FPS)):
                rolled = np.ascontiguousarray(np.roll(image, k, axis=1))
                container.mux(stream.encode(VideoFrame.from_ndarray(rolled, format="rgb24")))
            container.mux(stream.encode())
        if track is not None:
            samples = (voice(rate=track.rate) * 32767).astype(np.int16)
            frame = AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.rate = track.rate
            container.mux(track.encode(frame))
            container.mux(track.encode())


@functools.cache
def _weights() -> tuple[ConfigDict, dict[str, np.ndarray]]:
    import jax
    from flax.traverse_util import flatten_dict

    from emo_jax.models.emo import build

    config = small_config()
    flat = flatten_dict(build(config).init(jax.random.key(0)), sep="/")
    return config, {str(path): np.asarray(array) for path, array in flat.items()}


def _weight_folders(folder: Path) -> Iterator[Path]:
    from emo_jax.weights.store import save_weights

    save_weights(folder / "model", *_weights())
    yield folder / "model"


def _config_folders(folder: Path) -> Iterator[Path]:
    yield from _weight_folders(folder)


def _records(folder: Path) -> Iterator[Path]:
    from emo_jax.data.record import Record
    from emo_jax.data.records import write_records
    from emo_jax.media.audio import quantise
    from emo_jax.media.mp4 import encode_video

    count = round(SECONDS * FPS)
    frames = np.stack([np.roll(picture(), k, axis=1) for k in range(count)])

    def record(number: int) -> Record:
        return Record(
            id=f"record-{number}", source="fuzz", licence="CC0", video=encode_video(frames, FPS), fps=FPS,
            audio=quantise(voice(count / FPS)), boxes=np.tile(np.array([10, 8, 38, 40], np.float32), (count, 1)),
            rotation=np.zeros((count, 3), np.float32), speed=np.ones(count, np.float32),
        )  # fmt: skip

    write_records(folder / "records", {"train": lambda: map(record, range(3))}, shards=2, progress=False)
    yield folder / "records"


_MAKERS: dict[str, Callable[[Path], Iterator[Path]]] = {
    "picture": _pictures,
    "sound": _sounds,
    "video": _videos,
    "config": _config_folders,
    "records": _records,
    "weights": _weight_folders,
}
"""The kinds of inputs."""
KINDS = tuple(_MAKERS)
