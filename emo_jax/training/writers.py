"""Where a run's scalars and pictures go, as a table: the rows of `train.log`, and `emo train --log`."""

from __future__ import annotations

import contextlib
import csv
import importlib
import os
import pathlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jaxtyping import UInt8
from numpy import ndarray
from tensorboardX import SummaryWriter

from emo_jax.files import write_text


class Writer(Protocol):
    """Takes the scalars and pictures of a run."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes {name: value} of a step."""

    def image(self, name: str, image: UInt8[ndarray, "height width 3"], step: int) -> None:
        """Writes a picture of a step."""

    def close(self) -> None:
        """Ends the writer; everything is written."""


class TensorBoard:
    """Writes events for TensorBoard to the run's folder, which may be a bucket."""

    def __init__(self, workdir: str | os.PathLike, first: int, config: Mapping[str, Any]) -> None:
        # Scalars that a killed run wrote for steps that are done again are purged.
        self._writer = SummaryWriter(str(workdir), purge_step=first + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def image(self, name: str, image: UInt8[ndarray, "height width 3"], step: int) -> None:
        """Writes a picture."""
        self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


class Csv:
    """Appends rows (step, name, value) to WORKDIR/metrics.csv; pictures are left out."""

    FIELDS = ("step", "name", "value")

    def __init__(self, workdir: str | os.PathLike, first: int, config: Mapping[str, Any]) -> None:
        if "://" in os.fspath(workdir):
            raise ValueError(f"train.log has 'csv', which cannot append to a bucket ({workdir}); choose tensorboard")
        path = pathlib.Path(workdir, "metrics.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[Sequence[str]] = []
        if path.exists():  # Rows that a killed run wrote for steps that are done again are dropped, a torn one as well.
            with path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == len(self.FIELDS)]
            kept = [row for row in rows[1:] if row[0].isdigit() and int(row[0]) <= first]
        lines = [",".join(row) for row in (self.FIELDS, *kept)]
        write_text(path, "\n".join(lines) + "\n")
        self._file = path.open("a", newline="")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Appends a row for each scalar."""
        csv.writer(self._file, lineterminator="\n").writerows((step, name, f"{v:.8g}") for name, v in values.items())
        self._file.flush()

    def image(self, name: str, image: UInt8[ndarray, "height width 3"], step: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class WandB:
    """Sends scalars and pictures to Weights & Biases; WANDB_MODE, WANDB_PROJECT and others of its variables apply."""

    def __init__(self, workdir: str | os.PathLike, first: int, config: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb = wandb
        name = pathlib.PurePath(os.fspath(workdir)).name
        options: dict[str, Any] = {"id": self._id(workdir), "resume": "allow", "name": name, "config": dict(config)}
        options["project"] = os.environ.get("WANDB_PROJECT", "emo_jax")
        if "://" not in os.fspath(workdir):
            pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
            options["dir"] = os.fspath(workdir)
        self._run = wandb.init(**options)

    @staticmethod
    def _id(workdir: str | os.PathLike) -> str:
        """Returns the id of the run, which a file in its folder keeps for the next start."""
        if "://" in os.fspath(workdir):
            return uuid.uuid5(uuid.NAMESPACE_URL, os.fspath(workdir)).hex
        path = pathlib.Path(workdir, "wandb-id.txt")
        with contextlib.suppress(OSError):
            return path.read_text().strip()
        identity = uuid.uuid4().hex
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f"{identity}\n")
        return identity

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Sends scalars."""
        self._run.log(dict(values), step=step)

    def image(self, name: str, image: UInt8[ndarray, "height width 3"], step: int) -> None:
        """Sends a picture."""
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


WRITERS: dict[str, Callable[[str | os.PathLike, int, Mapping[str, Any]], Writer]] = {
    "tensorboard": TensorBoard,
    "csv": Csv,
    "wandb": WandB,
}
"""{row of `train.log`: class of (workdir, steps done before, config)}."""


def check_writers(names: Sequence[str]) -> None:
    """Checks the rows of `train.log` before any work.

    Raises:
        ValueError: an unknown name, or a package that is not installed.
    """
    for name in names:
        if name not in WRITERS:
            raise ValueError(f"train.log has {name!r}; expected names out of {', '.join(WRITERS)}")
    if "wandb" in names:
        try:
            importlib.import_module("wandb")
        except ImportError as error:
            raise ValueError(
                f"train.log has 'wandb', which is not installed: pip install -c constraints.txt -e '.[wandb]' ({error})"
            ) from error
