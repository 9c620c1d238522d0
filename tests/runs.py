"""`emo train` of a small model in subprocesses: one or several, with several CPU devices each."""

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
    """Returns a free port."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def python_path():
    """Returns a PYTHONPATH that starts with this checkout."""
    root = str(base.__file__).removesuffix("/configs/base.py")
    return os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])


class Run:
    """`emo train` of `training_config(stage)` in `count` processes with `devices` CPU devices each.

    Args:
        folder: gets the config, the run's folder and its log.
        name: of the run's folder.
        records: directory of the data.
        count: number of processes.
        devices: of each process.
        steps: train.steps.
        batch_size: train.batch_size.
        more: further command line arguments.
        stage: train.stage.
    """

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
        arguments = [[]]
        if count > 1:
            cluster = ["--coordinator", f"localhost:{free_port()}", "--processes", str(count), "--process"]
            arguments = [[*cluster, str(process)] for process in range(count)]
            environment |= dict(JAX_ENABLE_COMPILATION_CACHE="0")  # only process 0 would find its programs there
        with self.log.open("w") as log:
            self.processes = [
                subprocess.Popen(command + own, stdout=log, stderr=subprocess.STDOUT, env=environment)
                for own in arguments
            ]

    def wait(self, seconds=900):
        """Waits for all processes and returns their exit statuses."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(1, end - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def until(self, event, seconds=900):
        """Waits until a text is in the log, or a function returns true."""
        end = time.monotonic() + seconds
        while not (event() if callable(event) else event in self.log.read_text()):
            assert time.monotonic() < end and all(p.poll() is None for p in self.processes), self.log.read_text()
            time.sleep(0.05)

    def saved(self):
        """Returns the step of the newest complete checkpoint, 0 if there is none."""
        folder = self.workdir / "checkpoints"
        return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)

    def losses(self):
        """Returns {step: loss} of the log."""
        lines = re.findall(r"^step (\d+)/.* loss (\S+)", self.log.read_text(), re.MULTILINE)
        return {int(step): float(loss) for step, loss in lines}
