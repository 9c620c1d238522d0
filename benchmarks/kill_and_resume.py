"""Stage 2 of the small EMO on two processes of four CPU devices: killed twice, and resumed on three layouts.

    python -m benchmarks.kill_and_resume FOLDER    # a new one; some half hour on two cores, and 12 GB of memory

Prints how far the losses and the last step's state lie from those of a run that nothing disturbed; fails
where that is more than nothing on the same layout, or than rounding on another.
"""

import pathlib
import shutil
import signal
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.runs import Run
from tests.small import draw_people

STEPS, SAVE_EVERY = 30, 6
LAYOUTS = {"2 x 4": 2, "1 x 8": 1, "4 x 2": 4}
"""Processes, of eight devices in all, of the runs that end what was begun."""


def main(folder):
    """Trains, kills, resumes, compares."""
    folder.mkdir(parents=True)
    draw_people(folder / "records", 8, 1.2)
    _ended(_run(folder, "vae", 1, "vae", steps=20), "stage vae")
    _ended(_run(folder, "image", 1, "image", "vae", steps=20), "stage image")
    whole = _run(folder, "whole", 2)
    _ended(whole, "uninterrupted")
    right, wanted = whole.losses(), _state(whole.workdir)
    for step, process, number in ((9, 1, signal.SIGKILL), (15, 0, signal.SIGTERM)):
        cut = _run(folder, "cut", 2)
        cut.until(f"step {step}/", 1800)
        cut.processes[process].send_signal(number)
        _ended(cut, f"{number.name} to process {process} at step {step}")
        _tell(cut.losses(), right)
    for name, count in LAYOUTS.items():
        again = folder / name.replace(" ", "")
        shutil.copytree(folder / "cut", again)
        run = _run(folder, again.name, count)
        _ended(run, f"resumed as {name}")
        _tell(run.losses(), right)
        found = _state(run.workdir)
        same = sum(np.array_equal(found[path], wanted[path]) for path in wanted)
        away = _norm([found[path] - wanted[path] for path in wanted]) / _norm(wanted.values())
        _say(f"  state of step {STEPS}: {same} of {len(wanted)} arrays the same, {away:.1e} of the norm apart")
        if away > (0 if count == 2 else 1e-5):
            sys.exit(f"resumed as {name} is another run")


def _run(folder, name, count, stage="video", before="image", steps=STEPS):
    more = [f"--config.train.save_every={SAVE_EVERY}", "--config.train.sample_every=0"]
    if stage != "vae":
        more.append(f"--config.train.init_from={folder / before}")
    return Run(folder, name, folder / "records", count, 8 // count, steps, batch_size=8, more=more, stage=stage)


def _ended(run, what):
    since = time.monotonic()
    statuses = run.wait(1800)
    _say(f"{what}: exit status {statuses} after {time.monotonic() - since:.1f} s; saved: step {run.saved()}")


def _tell(losses, right):
    away = max(abs(losses[step] / right[step] - 1) for step in losses)
    _say(f"  losses of steps {min(losses)} to {max(losses)}: at most {away:.1e} of their size apart")


def _state(workdir):
    """{path: array} of the last checkpoint."""
    handler, folder = ocp.PyTreeCheckpointHandler(), workdir / "checkpoints" / str(STEPS) / "state"
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree)
    state = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=plain))
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _say(text):
    print(text, flush=True)


def _norm(arrays):
    return np.sqrt(sum(np.sum(np.square(np.asarray(a, np.float64))) for a in arrays))


if __name__ == "__main__":
    if len(sys.argv) != 2 or pathlib.Path(sys.argv[1]).exists():
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]).resolve())
