"""Many videos on a Ray cluster: each worker has a GPU, or CPUs, and takes the next videos that nobody works on."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from emo_jax.generation.batch import Outcome
from emo_jax.progress import Progress, report_waiting

POLL_SECONDS = 1.0
"""Seconds between two updates of the progress."""
REST_SECONDS = 10.0
"""Seconds that the other workers have once one has found all videos made."""


def make_on_ray(
    make: Callable[[], Outcome], folder: Path, names: Sequence[str], workers: int | None = None, batch: int = 1
) -> Outcome:
    """Makes videos in tasks of Ray, on the cluster of RAY_ADDRESS or of this machine, or else on this machine alone.

    All tasks do the same: claims in the folder share the videos among them. So no task waits for another one that has
    got no device yet, and the videos of a task whose machine is lost are made by the others.

    Args:
        make: makes the videos that nobody works on, and returns when all are made; it must be picklable.
        folder: the output folder, which all machines of the cluster share.
        names: names of the videos in it.
        workers: number of tasks; None for one on each GPU of the cluster, or on each CPU if it has no GPU.
        batch: number of videos that a task makes together.

    Raises:
        ValueError: Ray is missing, its cluster does not answer, or it has no devices.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("--runner ray needs the extra ray: pip install -c constraints.txt -e '.[ray]'") from error
    with _connected(ray):
        count, resources = plan_workers(ray.nodes(), workers, math.ceil(len(names) / batch))
        share = f"{resources['num_cpus']} CPUs" if "num_cpus" in resources else "a GPU"
        print(f"generate: {count} workers on Ray, each with {share}", file=sys.stderr, flush=True)
        # A process serves one task, because JAX does not give the memory of a GPU back.
        task = ray.remote(max_calls=1, **resources)(_work)
        tasks = [task.remote(make, resources.get("num_cpus")) for _ in range(count)]
        try:
            outcomes = list(_finished(ray, tasks, folder, names))
        finally:
            for running in tasks:
                ray.cancel(running)  # raises KeyboardInterrupt in it, so that no partial file stays
            ray.wait(tasks, num_returns=count, timeout=REST_SECONDS)
    failures = {name: reason for outcome in outcomes for name, reason in outcome.failures.items()}
    made = {name for name in names if (folder / name).exists()}
    return Outcome(len(made), 0, {name: reason for name, reason in failures.items() if name not in made})


def plan_workers(nodes: Sequence[dict[str, Any]], workers: int | None, batches: int) -> tuple[int, dict[str, int]]:
    """Returns the number of workers, and what each of them needs: one GPU, or an equal share of the CPUs.

    Args:
        nodes: the machines, as `ray.nodes()` returns them.
        workers: the number that the user asks for, or None.
        batches: number of batches of videos, above which more workers would have no work.

    Raises:
        ValueError: the cluster has no devices.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    if gpus:
        return min(workers or gpus, batches), {"num_gpus": 1}
    cpus = [int(machine.get("CPU", 0)) for machine in machines]
    if not sum(cpus):
        raise ValueError("the Ray cluster has no GPUs and no CPUs; start it with some: ray start --head --num-cpus=8")
    count = min(workers or sum(cpus), batches)
    share = max(1, sum(cpus) // count)
    while share > 1 and sum(machine // share for machine in cpus) < count:  # a worker is on one machine
        share -= 1
    return count, {"num_cpus": share}


@contextlib.contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Connects to a Ray cluster, or starts one that ends with the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray reports its use over the internet
    address, before = os.environ.get("RAY_ADDRESS", ""), signal.getsignal(signal.SIGTERM)
    check_address(address)
    try:
        with report_waiting("generate: connecting to Ray, or starting it"):
            ray.init(logging_level="error")
    except ConnectionError as error:
        raise ValueError(f"no Ray cluster answers at RAY_ADDRESS={address}; start it, or unset this") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's handler would kill the workers before they can clean up
    try:
        yield
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Checks that something listens at an address HOST:PORT, because Ray itself tries for more than ten minutes.

    Raises:
        ValueError: nothing listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=30).close()
        except OSError as error:
            raise ValueError(f"nothing answers at RAY_ADDRESS={address} ({error}); start Ray, or unset this") from error


def _work(make: Callable[[], Outcome], cpus: int | None) -> Outcome:
    """Makes videos in a process of Ray."""
    if cpus is not None:
        os.environ["NPROC"] = str(cpus)  # XLA's number of threads
    return make()


def _finished(ray: Any, tasks: Sequence[Any], folder: Path, names: Sequence[str]) -> Iterator[Outcome]:
    """Yields what tasks return. The first one that returns has waited for the videos of the others.

    Raises:
        ConnectionError: Ray lost all tasks, also in further tries.
        Exception: what a task raised.
    """
    running, there, end = list(tasks), 0, math.inf
    with Progress(len(names), "generate", "video") as progress:
        while running and time.monotonic() < end:  # at the end some wait for a device, or look again at failed videos
            time.sleep(POLL_SECONDS)  # signals arrive here: an exception of a handler breaks Ray's own waits
            over, running = ray.wait(running, num_returns=len(running), timeout=0)
            now = sum((folder / name).exists() for name in names)
            for task in over:
                try:
                    yield ray.get(task)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    progress.say(f"generate: a worker on Ray is lost: {' '.join(str(error).split())}")
                else:  # those that are not there have failed
                    now, end = len(names), min(end, time.monotonic() + REST_SECONDS)
            if now > there:
                progress.add(now - there)
                there = now
    if end == math.inf:
        raise ConnectionError("all workers on Ray are lost; the lines above say why")
