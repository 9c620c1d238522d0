"""Checks that files of torch are read, and malicious and broken ones refused: `python -m tests.parity.pickles`.

It needs torch, which the environment of the other tests does not have (.ci/run creates one that does).
"""

import pathlib
import sys
import tempfile

import numpy as np
import torch

from emo_jax.weights.files import read_tensors


class Malicious:
    """Creates a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def refused(path):
    """Returns the one-line reason why a file is not read."""
    try:
        read_tensors(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error), error
        return str(error)
    raise AssertionError(f"{path.name} was read")


def main(folder):
    """Writes valid and invalid files and reads them."""
    kernel = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {"a.weight": kernel, "b.half": kernel.half(), "c.brain": kernel.bfloat16()}
    expected = {"a.weight": np.float32, "b.half": np.float16, "c.brain": np.float32}
    files = {"plain.bin": tensors, "lightning.ckpt": {"state_dict": tensors, "epoch": 3, "callbacks": {}}}
    for name, content in files.items():
        torch.save(content, folder / name)
        arrays = read_tensors(folder / name)
        assert {n: a.dtype.type for n, a in arrays.items()} == expected, arrays
        assert all(np.array_equal(a, kernel.numpy()) for a in arrays.values())
    mark = folder / "mark"
    torch.save({"state_dict": tensors, "bait": Malicious(mark)}, folder / "malicious.ckpt")
    assert "more than weights" in refused(folder / "malicious.ckpt") and not mark.exists()
    content = (folder / "plain.bin").read_bytes()
    (folder / "cut.bin").write_bytes(content[: len(content) // 2])
    (folder / "text.pth").write_text("hello")
    torch.save([kernel], folder / "list.pt")
    reasons = [refused(folder / name) for name in ("cut.bin", "text.pth", "list.pt", "none.bin")]
    assert "no state dict" in reasons[2] and "does not exist" in reasons[3]
    print(f"{len(files)} files read, {1 + len(reasons)} refused")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        sys.exit(main(pathlib.Path(directory)))
