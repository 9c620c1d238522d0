"""Kills and resumes stage `video` of the tests' small EMO, on two processes of four CPU devices each.

    python -m benchmarks.kill_and_resume FOLDER    # a new folder; about half an hour on two cores, and 12 GB of memory

Compares losses and the last state with those of an uninterrupted run, for three layouts of processes. Fails if they
differ at all on the same layout, or by more than rounding on another.
"""

import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Iterable

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.runs import Run
from tests.small import draw_people

STEPS, SAVE_EVERY = 30, 6
LAYOUTS = {"2 x 4": 2, "1 x 8": 1, "4 x 2": 4}
"""Number of processes of the runs that resume; all have eight devices together."""


def main(folder: pathlib.Path) -> None:
    """Trains, kills, resumes and compares."""
    folder.mkdir(parents=True)
    draw_people(folder / "records", 8, 1.2)
    finish(start(folder, "vae", 1, "vae", steps=20), "stage vae")
    finish(start(folder, "image", 1, "image", "vae", steps=20), "stage image")
    reference = start(folder, "reference", 2)
    finish(reference, "uninterrupted")
    expected_losses, expected = reference.losses(), read_state(reference.workdir)
    for step, process, number in ((9, 1, signal.SIGKILL), (15, 0, signal.SIGTERM)):
        run = start(folder, "interrupted", 2)
        run.until(f"step {step}/", 1800)
        run.processes[process].send_signal(number)
        finish(run, f"{number.name} to process {process} at step {step}")
        compare_losses(run.losses(), expected_losses)
    for name, count in LAYOUTS.items():
        copy = folder / name.replace(" ", "")
        shutil.copytree(folder / "interrupted", copy)
        run = start(folder, copy.name, count)
        finish(run, f"resumed as {name}")
        compare_losses(run.losses(), expected_losses)
        state = read_state(run.workdir)
        equal = sum(np.array_equal(state[path], expected[path]) for path in expected)
        difference = norm(state[path] - expected[path] for path in expected) / norm(expected.values())
        print(
            f"  state: {equal} of {len(expected)} arrays equal; difference {difference:.1e} of the norm", flush=True
        )
        if difference > (0 if count == 2 else 1e-5):
            sys.exit(f"resumed as {name}: the state differs by {difference:.1e}")


def start(folder: pathlib.Path, name: str, count: int, stage: str = "video", before: str = "image",
          steps: int = STEPS) -> Run:  # fmt: skip
    """Starts `count` processes of a run, which continues if its workdir exists."""
    options = [f"--config.train.save_every={SAVE_EVERY}", "--config.train.sample_every=0"]
    if stage != "vae":
        options.append(f"--config.train.init_from={folder / before}")
    return Run(folder, name, folder / "records", count, 8 // count, steps, batch_size=8, more=options, stage=stage)


def finish(run: Run, name: str) -> None:
    """Waits for all processes of a run and prints how they ended."""
    started = time.monotonic()
    statuses = run.wait(1800)
    seconds = time.monotonic() - started
    print(f"{name}: exit status {statuses} after {seconds:.1f} s; saved: step {run.saved()}", flush=True)


def compare_losses(losses: dict[int, float], expected: dict[int, float]) -> None:
    """Prints the largest relative difference of two runs' losses."""
    difference = max(abs(losses[step] / expected[step] - 1) for step in losses)
    print(f"  losses of steps {min(losses)} to {max(losses)}: differ by at most {difference:.1e}", flush=True)


def read_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns {path: array} of the last checkpoint."""
    handler, folder = ocp.PyTreeCheckpointHandler(), workdir / "checkpoints" / str(STEPS) / "state"
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree)
    state = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=plain))
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def norm(arrays: Iterable[np.ndarray]) -> float:
    """Returns the norm of all numbers of some arrays."""
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(array, np.float64))) for array in arrays)))


if __name__ == "__main__":
    if len(sys.argv) != 2 or pathlib.Path(sys.argv[1]).exists():
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]).resolve())
