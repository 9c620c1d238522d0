"""`emo train` of a small model as really several processes, of several CPU devices each."""

import os
import re
import socket
import subprocess
import sys
import time

from emo_jax.configs import base

CONFIG = "from tests.steps import training_config as get_config\n"
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def python_path():
    """A PYTHONPATH for a process of its own: this checkout, and then what stands there already."""
    root = str(base.__file__).removesuffix("/configs/base.py")
    return os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])


class Run:
    """A run of `training_config(stage)` from records, as `count` processes of `devices` CPU devices each."""

    def __init__(self, folder, name, records, count, devices, steps=6, batch_size=4, more=(), stage="vae"):
        config = folder / "config.py"
        config.write_text(CONFIG)
        self.workdir, self.log = folder / name, folder / f"{name}-{count}.log"
        command = [sys.executable, "-m", "emo_jax.cli", "train", f"--config={config}:{stage}"]
        options = dict(batch_size=batch_size, steps=steps, log_every=1)
        options |= {"mesh.fsdp": 2, "optimizer.schedule": "constant"}
        command += [f"--workdir={self.workdir}", f"--config.data.directory={records}", *more]
        command += [f"--config.train.{k}={v}" for k, v in options.items()]
        flags = f"{FLAGS} --xla_force_host_platform_device_count={devices}"
        environment = os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags, PYTHONPATH=python_path())
        joined = [[]]
        if count > 1:
            places = ["--coordinator", f"localhost:{free_port()}", "--processes", str(count), "--process"]
            joined = [[*places, str(process)] for process in range(count)]
            environment |= dict(JAX_ENABLE_COMPILATION_CACHE="0")  # only one would find its programs there
        with self.log.open("w") as log:
            self.processes = [
                subprocess.Popen(command + place, stdout=log, stderr=subprocess.STDOUT, env=environment)
                for place in joined
            ]

    def wait(self, seconds=900):
        """The exit statuses."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(1, end - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def until(self, happened, seconds=900):
        """Waits for a text in the log, or for a function to be true."""
        end = time.monotonic() + seconds
        while not (happened() if callable(happened) else happened in self.log.read_text()):
            assert time.monotonic() < end and all(p.poll() is None for p in self.processes), self.log.read_text()
            time.sleep(0.05)

    def saved(self):
        """The newest whole checkpoint's step, 0 without one."""
        folder = self.workdir / "checkpoints"
        return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)

    def losses(self):
        """{step: loss} of the log."""
        found = re.findall(r"^step (\d+)/.* loss (\S+)", self.log.read_text(), re.MULTILINE)
        return {int(step): float(loss) for step, loss in found}
