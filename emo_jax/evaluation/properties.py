"""The properties that `emo evaluate` measures: one function for each row of its table.

Each function takes `ev`, an `emo_jax.evaluation.evaluate.Evaluation`, which generates and measures the videos.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

from emo_jax.evaluation.heldout import long_voices
from emo_jax.evaluation.identity import colour_distance, drift, nearest, retrieval
from emo_jax.evaluation.motion import following_slope, mask_centres, measured_speed, seam_ratio
from emo_jax.evaluation.sync import lip_correlation, silence_ratio
from emo_jax.media.audio import write_wav

LEAD_IN = 0.28
"""Seconds of silence at the start of every voice, left out because they would make any two voices correlate."""
LONG_PEOPLE, LONG_PART = 4, 10
"""Number of people in the long videos, and the seconds compared at both ends."""
SHIFTS = ((0, 0), (-12, 6), (-6, -12), (6, 12), (12, -6))
"""Shifts (x, y) of the mask in 128ths of the image; x and y are uncorrelated."""
MOVED_SECONDS = 4.0
"""Length of the videos that measure place and speed."""


@dataclasses.dataclass
class Row:
    """One row of the table.

    Attributes:
        property: short name.
        measure: description of the measure.
        value: the measured value.
        bar: the value that must be reached.
        below: whether the value must not exceed the bar, instead of reaching it.
        aim: the value to aim for.
        renders: the measure on rendered videos.
        control: the part that the control generation lacks.
        control_value: the measure on the control.
        control_bar: the control fails, as it must, if it does not reach this value.
        detail: further figures for report.json.
    """

    property: str
    measure: str
    value: float
    bar: float
    below: bool = False
    aim: float | None = None
    renders: float | None = None
    control: str = ""
    control_value: float | None = None
    control_bar: float | None = None
    detail: dict = dataclasses.field(default_factory=dict)

    @property  # pyright: ignore[reportUnboundVariable]
    def passed(self) -> bool:
        """Whether the value reaches the bar."""
        return self.value <= self.bar if self.below else self.value >= self.bar

    @property  # pyright: ignore[reportUnboundVariable]
    def control_failed(self) -> bool | None:
        """Whether the control failed, as it must; None if it has no bar."""
        if self.control_bar is None or self.control_value is None:
            return None
        return bool(self.control_value > self.control_bar if self.below else self.control_value <= self.control_bar)

    def as_dict(self) -> dict:
        """Returns the row for report.json."""
        return dataclasses.asdict(self) | {"passed": bool(self.passed), "control_failed": self.control_failed}


def talk_rows(ev) -> tuple[list[Row], np.ndarray]:
    """Returns the rows lips, silence, identity and seams, and the generated frames uint8 (P, N, H, W, 3)."""
    frames, renders = ev.generate("talking"), ev.people.renders
    found, drawn = ev.measure(frames), ev.measure(renders)
    makers = {"lips": lips_row, "silence": silence_row, "identity": identity_row, "seams": seams_row}
    rows = [maker(ev, frames, found, drawn) for name, maker in makers.items() if name in ev.wanted]
    return rows, frames


def lips_row(ev, frames, found, drawn) -> Row:
    """Returns the correlation of mouth opening and voice; the control speaks with shuffled voices."""
    spoken = np.s_[:, round(LEAD_IN * ev.clip.fps) :]
    truth = ev.people.openings[spoken]
    r = lip_correlation(found["opening"][spoken], truth)
    other = ev.measure(ev.generate("shuffled voices", voices=np.roll(ev.people.voices, 1, 0)))["opening"]
    control = lip_correlation(other[spoken], truth)
    drawn_r = lip_correlation(drawn["opening"][spoken], ev.people.rendered_openings[spoken])
    return Row(
        "lips", "median Pearson r of mouth opening and voice", float(np.median(r)), 0.6, aim=0.85,
        renders=float(np.median(drawn_r)),
        control="voices shuffled", control_value=float(np.median(control)), control_bar=0.15,
        detail={"each": _list(r), "each_shuffled": _list(control), "lowest": float(r.min())},
    )  # fmt: skip


def silence_row(ev, frames, found, drawn) -> Row:
    """Returns how far the mouth stays open in silence, relative to speech."""
    return Row(
        "silence", "mouth opening, silent / voiced", silence_ratio(found["opening"], ev.people.openings), 0.35,
        below=True, renders=silence_ratio(drawn["opening"], ev.people.rendered_openings),
    )  # fmt: skip


def identity_row(ev, frames, found, drawn) -> Row:
    """Returns how often a frame is nearest to its own reference; the control has no reference."""
    references = ev.measure(np.concatenate([ev.people.references, ev.people.others]))["identity"]
    few = references[: len(frames)]
    off = ev.measure(ev.generate("reference off", off=("reference",)))["identity"]
    own = np.arange(len(frames))[:, None]
    return Row(
        "identity", f"frames that find their reference among {len(few)}",
        retrieval(found["identity"], few), 0.9, aim=0.98, renders=retrieval(drawn["identity"], few),
        control="reference off", control_value=retrieval(off, few), control_bar=min(3 / len(few), 0.5),
        detail={
            "each": _list((nearest(found["identity"], few) == own).mean(1)),
            f"among_{len(references)}": retrieval(found["identity"], references),
            f"among_{len(references)}_renders": retrieval(drawn["identity"], references),
            f"among_{len(references)}_reference_off": retrieval(off, references),
        },
    )  # fmt: skip


def seams_row(ev, frames, found, drawn) -> Row:
    """Returns the change between frames at clip borders relative to inside; the control has no motion frames."""
    length = ev.clip.frames
    off = ev.generate("motion frames off", off=("motion",))
    return Row(
        "seams", "frame difference, clip borders / inside", seam_ratio(frames, length), 1.3, below=True,
        renders=seam_ratio(ev.people.renders, length), control="motion frames off",
        control_value=seam_ratio(off, length), control_bar=1.3,
    )  # fmt: skip


def speed_row(ev) -> Row:
    """Returns the measured head speed at a fast setting divided by that at a slow one."""
    centres = list(ev.config.model.speed.centres)
    asked = [centres[1], centres[len(centres) // 2], centres[-2]]
    voices, means = ev.short(MOVED_SECONDS), []
    for speed in asked:
        frames = ev.generate(f"speed {speed:g}", voices=voices, speed=speed)
        means.append(float(measured_speed(ev.measure(frames)["rotation"]).mean()))
    found = measured_speed(ev.measure(ev.people.renders)["rotation"]).mean(1)
    ordered = means[0] < means[1] < means[2]
    true = ev.people.rendered_speeds.mean(1)
    return Row(
        "speed", "head rotation, fast / slow" + ("" if ordered else " (not in order)"),
        means[2] / max(means[0], 1e-9) if ordered else 0.0, 1.7,
        detail={"seconds": frames.shape[1] / ev.clip.fps, "asked": asked, "degrees_per_frame": means,
                "ratio": means[2] / max(means[0], 1e-9), "renders_true": _list(true), "renders_measured": _list(found)},
    )  # fmt: skip


def place_row(ev) -> Row:
    """Returns how far the face follows a moved mask; the control has no Face Locator."""
    voices, slopes = ev.short(MOVED_SECONDS), {}
    for name, off in (("on", ()), ("off", ("locator",))):
        moved, found = [], []
        for x, y in SHIFTS:
            masks = ev.people.masks((x / 128, y / 128))
            frames = ev.generate(f"mask moved {x}, {y}, locator {name}", off=off, voices=voices, masks=masks)
            moved.append(mask_centres(masks))
            found.append(ev.measure(frames)["centre"].mean(1))
        moved, found = np.stack(moved), np.stack(found)
        slopes[name] = [following_slope(moved[..., axis], found[..., axis]) for axis in (0, 1)]
    return Row(
        "place", "slope of face centre on mask centre (lower of x, y)", min(slopes["on"]), 0.5,
        control="locator off", control_value=max(map(abs, slopes["off"])), control_bar=0.15,
        detail={"seconds": frames.shape[1] / ev.clip.fps, "slope_xy": slopes["on"],
                "slope_xy_locator_off": slopes["off"]},
    )  # fmt: skip


def length_row(ev) -> Row:
    """Returns how identity and colour drift in a long video."""
    count = min(LONG_PEOPLE, len(ev.people.references))
    references = ev.people.references[:count]
    own = ev.measure(references)["identity"][:, None]
    identity, colour = [], []
    for frames in ev.stream(f"{ev.long:g} s", voices=long_voices(count, ev.long), people=count):
        identity.append(np.linalg.norm(ev.measure(frames)["identity"] - own, axis=-1))
        colour.append(np.stack([colour_distance(f, r) for f, r in zip(frames, references, strict=True)]))
    window = round(min(LONG_PART, ev.long / 2) * ev.clip.fps)
    ratios = {
        "identity": drift(np.concatenate(identity, 1), window),
        "colour": drift(np.concatenate(colour, 1), window),
    }
    return Row(
        "length", f"{ev.long:g} s: distance to the reference, last / first {window / ev.clip.fps:g} s",
        max(ratios.values()), 1.15, below=True, detail=ratios,
    )  # fmt: skip


def memory_row(checkpoint: str, reference: np.ndarray, long: float, steps: int | None) -> Row:
    """Returns the peak memory of `emo generate` for a long voice divided by that for 10 s, in fresh processes."""
    peaks, lengths = [], (min(10.0, long / 2), long)
    with tempfile.TemporaryDirectory() as folder:
        portrait = f"{folder}/portrait.png"
        Image.fromarray(reference).save(portrait)
        for seconds in lengths:
            voice, out = f"{folder}/voice.wav", f"{folder}/out.mp4"
            write_wav(voice, long_voices(1, seconds)[0])
            command = [sys.executable, "-m", "emo_jax.cli", "generate", "--checkpoint", checkpoint]
            command += ["--portrait", portrait, "--audio", voice, "--out", out]
            command += ["--steps", str(steps)] if steps else []
            print(f"memory: emo generate with {seconds:g} s of sound", file=sys.stderr, flush=True)
            peaks.append(peak_memory(command))
    return Row(
        "memory", f"peak memory of emo generate, {long:g} s / {lengths[0]:g} s", peaks[1] / peaks[0], 1.15, below=True,
        detail={"MiB": peaks},
    )  # fmt: skip


_WATCH = """
import os, sys
_, status, usage = os.wait4(os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:]), 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak_memory(command: list[str]) -> float:
    """Returns the peak resident memory of a command in MiB.

    Raises:
        ValueError: the command failed; the message has its last line of stderr.
    """
    # A small process starts the command: on Linux a process inherits the peak of the one that starts it.
    watched = [sys.executable, "-S", "-c", _WATCH, *command]
    compiling = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # otherwise only the first command would compile
    done = subprocess.run(watched, capture_output=True, text=True, errors="replace", env=compiling)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"{' '.join(command[:4])} failed (exit status {done.returncode}): {last}")
    return int(done.stdout.split()[-1]) / (2**20 if sys.platform == "darwin" else 2**10)


def _list(values) -> list[float]:
    return [round(float(v), 4) for v in np.ravel(values)]
