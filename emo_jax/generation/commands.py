"""What `emo generate` and `emo demo` do: files in, a video file out."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_jax.faces.boxes import check_box
from emo_jax.generation.claims import remove_abandoned
from emo_jax.generation.framing import MAX_SIZE, check_framing
from emo_jax.generation.inputs import ASSETS, check_options, choose_face, load_portrait, load_voice
from emo_jax.generation.manifest import Item, read_manifest
from emo_jax.generation.songs import load_song
from emo_jax.media.targets import check_target, create_folder_of
from emo_jax.media.timing import frame_count, require_frames
from emo_jax.weights.presets import BUNDLED, DEFAULT

if TYPE_CHECKING:
    from emo_jax.generation.batch import Outcome

RUNNERS = ("local", "ray")
"""Where the videos of a manifest are made."""
_WEIGHTS = ("pose_weight", "face_weight", "lip_weight")
_STREAM_FIELDS = ("steps", "solver", "reference_scale", "audio_scale", "speed", *_WEIGHTS)
"""Fields of `sampling` that `EmoPipeline.stream` takes; the others are set when the pipeline is loaded."""


def generate_file(
    portrait: str,
    audio: str,
    output: str,
    weights: str = DEFAULT,
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    seed: int = 0,
    face_box: tuple[float, float, float, float] | int | None = None,
    framing: str = "portrait",
    max_size: int = MAX_SIZE,
    vocals: str = "off",
    soundtrack: str | None = None,
    codec: str | None = None,
    notice: str | None = None,
    face_embedding: str | None = None,
    sampling: dict[str, Any] | None = None,
) -> None:
    """Generates a video file from a portrait and a sound file. Checks all inputs before it loads the model.

    Args:
        portrait: an image file.
        audio: a file with a sound track.
        output: the file or folder to write, as `open_writer` takes it. Missing folders are created.
        weights: a preset, a folder of weights, or the folder of a training run.
        size: (height, width) of the frames in pixels; None: the model's.
        fps: the file's frame rate, for which frames are repeated or left out; None: the model's.
        seed: the seed of the noise.
        face_box: the face in the portrait, (x0, y0, x1, y1) in pixels, or its number; None: detect it.
        framing: "portrait" for the picture at its size, or "crop" for the square around the face.
        max_size: limit of the shorter side of the video in pixels.
        vocals: what to hear of the audio, as `load_song` takes it.
        soundtrack: a file that the video plays instead of `audio`.
        codec: the video codec; None: the default of the file's format.
        notice: a text to draw into the frames.
        face_embedding: a .npy file with the identity embedding of the face, or InsightFace's .onnx network; None: no
            embedding, which is zeros.
        sampling: fields of the config's `sampling` to override.

    Raises:
        ValueError: an input that cannot be used.
    """
    stream_fields, fields = _split(sampling)
    _check(seed, stream_fields, fields, fps)
    check_framing(framing, max_size)
    check_target(output, codec, creates_folder=True)
    image = load_portrait(portrait)
    if isinstance(face_box, int):
        face_box = choose_face(image, face_box, portrait)
    if face_box is not None:
        check_box(face_box, *image.shape[:2])
    voice = load_song(audio, vocals=vocals, soundtrack=soundtrack)
    _check_keeps(output, (portrait, audio, vocals, soundtrack or ""))
    _announce("generate", weights)
    from emo_jax.generation.writing import write_video  # imports JAX

    pipe = load_pipeline(weights, size, fields)
    require_frames(voice.samples, fps or pipe.fps, audio)
    if face_embedding is not None:
        stream_fields["face_embedding"] = _load_embedding(pipe, face_embedding, image, face_box)
    create_folder_of(output)
    write_video(
        output,
        pipe,
        image,
        voice,
        label="generate",
        fps=fps,
        codec=codec,
        notice=notice,
        seed=seed,
        face_box=face_box,
        framing=framing,
        max_size=max_size,
        **stream_fields,
    )


def _check_keeps(output: str, inputs: Iterable[str]) -> None:
    """Raises ValueError if the output would replace one of the inputs; names that are no files are skipped."""
    for name in filter(os.path.exists, inputs):
        if os.path.exists(output) and os.path.samefile(output, name):
            raise ValueError(f"--output {output} would replace the input {name}; choose another name")


def _load_embedding(pipe: Any, path: str, image: Any, face_box: Any) -> Any:
    """Returns the identity embedding of a face."""
    from emo_jax.generation.face_inputs import embedding_size, load_embedding  # imports JAX

    size = embedding_size(pipe.config.model)
    if not size:
        raise ValueError("--face-embedding is given, but these weights do not use one")
    return load_embedding(path, size, image, face_box)


def generate_batch(
    manifest: str,
    output: str,
    weights: str = DEFAULT,
    *,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    vocals: str = "off",
    batch: int = 1,
    devices_per_video: int = 1,
    runner: str = "local",
    workers: int | None = None,
    sampling: dict[str, Any] | None = None,
    **options: Any,
) -> int:
    """Generates the videos of a manifest into a folder: those that are not there, shared with other processes.

    Waits at the end for the videos of other processes, so that all are there if the status is 0. Prints a summary to
    stdout, and the failures with their reasons to stderr.

    Args:
        manifest: a .csv or .jsonl file, see `read_manifest`.
        output: the folder; it is created.
        weights: a preset, a folder of weights, or the folder of a training run.
        size: (height, width) of the generated square in pixels; None: the model's.
        seed: the seed of videos without one.
        vocals: what to hear of recordings without `vocals`.
        batch: number of videos that a device makes together in one program.
        devices_per_video: devices that share a video, or a batch; see `emo plan --program generate`. Those left
            over stay idle.
        runner: "local" for the devices of this process, or "ray" for those of a Ray cluster.
        workers: number of workers on Ray, see `make_on_ray`.
        sampling: fields of the config's `sampling` to override.
        **options: fps, codec, notice, framing and max_size, as `generate_file` takes them.

    Returns:
        The exit status: 1 if a video could not be made.

    Raises:
        ValueError: the manifest or an option cannot be used.
    """
    stream_fields, fields = _split(sampling)
    _check(seed, stream_fields, fields, options.get("fps"))
    check_framing(options.get("framing", "portrait"), options.get("max_size", MAX_SIZE))
    for name, value in (("batch", batch), ("devices-per-video", devices_per_video), ("workers", workers)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; expected 1 or more")
    if runner not in RUNNERS:
        raise ValueError(f"--runner is {runner!r}; expected {' or '.join(RUNNERS)}")
    # Workers on other machines have other working directories.
    items, folder = read_manifest(os.path.abspath(manifest)), Path(os.path.abspath(output))
    weights = os.path.abspath(weights) if os.path.exists(weights) else weights
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {output} cannot be a folder ({error.strerror}); choose another") from error
    for name in {Path(item.name).suffix for item in items}:
        check_target(folder / f"x{name}", options.get("codec"))
    remove_abandoned(folder)
    missing = [item for item in items if not (folder / item.name).exists()]
    print(f"generate: {len(items)} videos, {len(items) - len(missing)} are there", file=sys.stderr, flush=True)
    if not missing:
        return 0
    options = {name: value for name, value in options.items() if value is not None} | stream_fields
    load, defaults = functools.partial(load_pipeline, weights, size, fields), dict(seed=seed, vocals=vocals)
    make = functools.partial(_make_here, load, missing, folder, options, defaults, batch, devices_per_video)
    if runner == "ray":
        from emo_jax.generation.ray_pool import make_on_ray

        make = functools.partial(make, shown=False)
        outcome = make_on_ray(make, folder, [item.name for item in missing], workers, batch)
    else:
        _announce("generate", weights)
        outcome = make()
    text = f"{output}: {outcome.made} made, {len(items) - len(missing)} were there, {len(outcome.failures)} failed"
    print(f"{text}, {outcome.elsewhere} made by other processes" if outcome.elsewhere else text)
    for name, reason in outcome.failures.items():
        print(f"generate: {name}: {reason}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _make_here(
    load: Callable[[], Any],
    items: list[Item],
    folder: Path,
    options: dict[str, Any],
    defaults: dict[str, Any],
    batch: int,
    devices_per_video: int = 1,
    shown: bool = True,
) -> Outcome:
    """Makes videos on the devices of this process, as `Batch` does, with the pipeline that `load` returns.

    Raises:
        ValueError: this process has fewer devices than a video is to have.
    """
    pipe = load()
    import jax

    from emo_jax.generation.batch import Batch

    devices = jax.local_devices()
    if devices_per_video > len(devices):
        raise ValueError(f"--devices-per-video is {devices_per_video}; this process has {len(devices)}")
    starts = range(0, len(devices) - devices_per_video + 1, devices_per_video)
    groups = [devices[start : start + devices_per_video] for start in starts]
    pipes = [pipe] if len(devices) == 1 else [pipe.on(group) for group in groups]
    return Batch(items, folder, pipes, options, defaults, batch, shown).run()


def generate_live(
    portrait: str,
    audio: str,
    output: str,
    weights: str = DEFAULT,
    *,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    face_box: tuple[float, float, float, float] | int | None = None,
    framing: str = "portrait",
    max_size: int = MAX_SIZE,
    notice: str | None = None,
    sampling: dict[str, Any] | None = None,
) -> None:
    """Generates a video while its sound comes; see `live.write_live`.

    Args:
        portrait: an image file.
        audio: "-" for standard input, "microphone", or a named pipe or file.
        output: where to write, as `LiveWriter` takes it. Missing folders are created.
        weights: a preset, a folder of weights, or the folder of a training run.
        size: (height, width) of the generated square in pixels; None: the model's.
        seed: the seed of the noise.
        face_box: the face in the portrait, as `generate_file` takes it.
        framing: "portrait" or "crop".
        max_size: limit of the shorter side of the video in pixels.
        notice: a text to draw into the frames.
        sampling: fields of the config's `sampling` to override; `clips` is 1 by default, for a short latency.

    Raises:
        ValueError: an input that cannot be used.
    """
    from emo_jax.media.live_writer import find_target

    stream_fields, fields = _split(sampling)
    _check(seed, stream_fields, fields)
    check_framing(framing, max_size)
    find_target(output)
    image = load_portrait(portrait)
    if audio not in ("-", "microphone") and not os.path.exists(audio):
        raise ValueError(f"--audio {audio} does not exist; give -, microphone, or a named pipe")
    if output != "-" and "://" not in output:
        _check_keeps(output, (portrait, audio))
        create_folder_of(output)
    _announce("generate", weights)
    from emo_jax.generation.live import write_live  # imports JAX
    from emo_jax.media.live_sound import open_source

    clips = fields.pop("clips", 1)
    pipe = load_pipeline(weights, size, fields)
    place: Any = dict(face_box=face_box, framing=framing, max_size=max_size)
    write_live(
        pipe, image, lambda: open_source(audio), output, notice=notice, clips=clips, seed=seed, **place, **stream_fields
    )


def generate_demo(
    output: str, weights: str = DEFAULT, *, seed: int = 0, sampling: dict[str, Any] | None = None
) -> None:
    """Generates a video file of the bundled portrait and voice, and a PNG of some of its frames beside it.

    Args:
        output: the mp4 file to write; its folder is created.
        weights: a preset, a folder of weights, or the folder of a training run.
        seed: the seed of the noise.
        sampling: fields of the config's `sampling` to override.

    Raises:
        ValueError: an output that cannot be written, or an option that cannot be used.
    """
    path = Path(output)
    check_target(path, creates_folder=True)
    stream_fields, fields = _split(sampling)
    _check(seed, stream_fields, fields)
    portrait, voice = load_portrait(ASSETS / "portrait.png"), load_voice(ASSETS / "voice.wav")
    _announce("demo", weights)
    from emo_jax.generation.writing import FilmStrip, print_result, write_video  # imports JAX

    pipe = load_pipeline(weights, None, fields)
    create_folder_of(path)
    strip = FilmStrip(frame_count(len(voice.samples), pipe.fps))
    write_video(path, pipe, portrait, voice, label="demo", seed=seed, on_frames=strip.add, **stream_fields)
    strip.save(path.with_suffix(".png"))
    print_result(f"{path.with_suffix('.png')}: a strip of its frames")


def _announce(label: str, weights: str) -> None:
    """Says on stderr that weights are being loaded, which begins with seconds for importing JAX."""
    if weights in BUNDLED or os.path.exists(weights):  # others may not exist: their error stands alone
        print(f"{label}: loading weights", file=sys.stderr, flush=True)


def load_pipeline(weights: str, size: tuple[int, int] | None, sampling: dict[str, Any]) -> Any:
    """Loads an `EmoPipeline`, with the cache of compiled programs enabled.

    Args:
        weights: a preset, a folder of weights, or the folder of a training run.
        size: (height, width) of the frames in pixels; None: the model's.
        sampling: fields of the config's `sampling` to override.

    Raises:
        ValueError: no such weights, an unknown field, or no device.
    """
    from emo_jax.cache import keep_programs
    from emo_jax.distributed.processes import check_devices
    from emo_jax.generation.pipeline import EmoPipeline

    keep_programs()
    check_devices()
    pipe = EmoPipeline.from_pretrained(weights, size, **sampling)
    stage = pipe.config.get("train", {}).get("stage")
    if stage in ("vae", "image"):
        print(
            f"warning: {weights} were trained up to stage {stage} only, so their videos are noise or do not move; "
            "train the stages that follow (docs/train.md)",
            file=sys.stderr,
        )
    return pipe


def _split(sampling: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    fields = dict(sampling or {})
    return {name: fields.pop(name) for name in _STREAM_FIELDS if name in fields}, fields


def _check(seed: int, stream_fields: dict[str, Any], fields: dict[str, Any], fps: float | None = None) -> None:
    numbers = {name: value for name, value in stream_fields.items() if name != "solver"}
    check_options(seed=seed, fps=fps, **numbers)
    clips = fields.get("clips", 1)
    if not isinstance(clips, int) or clips < 1:
        raise ValueError(f"clips is {clips!r}; expected an integer of at least 1")
