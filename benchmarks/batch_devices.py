"""Compares a batch of videos on several CPU devices with the same batch on one: `emo generate --manifest`, in turn.

    python -m benchmarks.batch_devices                                            # 40 videos of 1 s, 8 devices
    python -m benchmarks.batch_devices --pairs 4 --devices 2 --seconds 0.3        # a few minutes

Runs one device, then several, `--rounds` times (ABAB), after a run of each that only fills the cache of programs. On
one machine all devices share its cores, so that the ratio says what a further device costs at the start, and what it
hides: decoding, writing, waiting.
"""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from emo_jax.media.audio import load_audio, write_wav
from emo_jax.synthetic.assets import ASSETS
from emo_jax.tables import format_table
from tests.runs import python_path


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40, help="number of videos (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=8, help="devices to compare with one (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of each video (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each (default: %(default)s)")
    parser.add_argument("options", nargs="*", help="options of emo generate, after --")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_pairs(folder, args.pairs, args.seconds, args.devices)
        for devices in (1, args.devices):
            run(folder, "few.jsonl", devices, args.options)
        for number, devices in itertools.product(range(args.rounds), (1, args.devices)):
            seconds, cpu = run(folder, "pairs.jsonl", devices, args.options)
            rows.append((devices, seconds, cpu))
            text = f"round {number + 1}, {devices} devices: {seconds:.1f} s, {cpu:.1f} CPU s"
            print(text, file=sys.stderr, flush=True)
    print(f"{args.pairs} videos of {args.seconds:g} s, {os.cpu_count()} CPU cores")
    medians = {devices: np.median([row[1:] for row in rows if row[0] == devices], axis=0) for devices, *_ in rows}
    cells = [[str(devices), f"{seconds:.1f}", f"{cpu:.1f}"] for devices, (seconds, cpu) in medians.items()]
    print(format_table(cells, ["devices", "seconds", "CPU seconds"], align=">>>"))
    print(f"one device / {args.devices} devices: {medians[1][0] / medians[args.devices][0]:.2f}")


def write_pairs(folder: pathlib.Path, pairs: int, seconds: float, devices: int) -> None:
    """Writes manifests of the bundled portrait with parts of the bundled voice: all pairs, and two for each device."""
    voice, length, portrait = load_audio(ASSETS / "voice.wav"), round(16000 * seconds), str(ASSETS / "portrait.png")
    rows = []
    for index in range(pairs):
        write_wav(folder / f"{index}.wav", np.take(voice, range(800 * index, 800 * index + length), mode="wrap"))
        rows.append(dict(portrait=portrait, audio=f"{index}.wav", seed=index))
    for name, chosen in (("pairs", rows), ("few", rows[:1] * 2 * devices)):
        lines = (json.dumps(row | dict(output=f"{index}.mp4")) for index, row in enumerate(chosen))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def run(folder: pathlib.Path, manifest: str, devices: int, options: list[str]) -> tuple[float, float]:
    """Runs the batch in a new process; returns its seconds and CPU seconds."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags, PYTHONPATH=python_path())
    output = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "-m", "emo_jax.cli", "generate", "--manifest", str(folder / manifest), "-o", output]
    start = time.monotonic()
    process = subprocess.Popen([*command, *options], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        sys.exit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
