"""Several processes, one run: how they find each other, agree, and learn that they are to end."""

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

HEARTBEAT = 30
"""Seconds without a sign of life after which a process counts as dead, and the others end."""
_COMPILING = 3600
"""Seconds that the processes may be apart when they have compiled the step."""
_APART = 86400
"""Seconds that they may be apart at the end of work that each does by itself."""
_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}


def start(coordinator=None, processes=None, process=None):
    """Joins the processes of this run; to be called once, before anything touches a device.

    Where all three are None and their environment variables are not set, JAX asks the cluster (TPU pods, SLURM, GKE,
    Open MPI); where there is none, or in a program that has used JAX before, the process is alone.

    Args:
        coordinator: HOST:PORT of process 0. processes: how many there are. process: which one this is, from 0.
            Each falls back to JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID.

    Raises:
        ValueError: some of the three are given and others not, or they do not fit together.
    """
    given = _given(coordinator, processes, process)
    if jax.distributed.is_initialized():
        return
    if given is None and os.environ.get("SLURM_NTASKS") == "1":
        return  # JAX would take one of its GPUs and leave the others
    options = dict(heartbeat_timeout_seconds=HEARTBEAT)
    if given is not None:  # JAX is not to ask the cluster too, which would give each process one GPU
        options |= given | dict(cluster_detection_method="deactivate")
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:
        if given is not None or "coordinator_address" not in str(error):
            raise
    except RuntimeError as error:  # nobody there, a port in use
        if given is None and "must be called before" in str(error):
            return
        where = given["coordinator_address"] if given else "the cluster's coordinator"
        raise ValueError(
            f"cannot join the other processes at {where} ({' '.join(str(error).split())[:200]}); is process 0 up, "
            "and its port free and reachable?"
        ) from error


def _given(coordinator, processes, process):
    """The arguments of jax.distributed.initialize, or None where nothing is given."""
    values = dict(coordinator=coordinator, processes=processes, process=process)
    for name, variable in _VARIABLES.items():
        if values[name] is None and os.environ.get(variable):
            values[name] = os.environ[variable]
    if all(value is None for value in values.values()):
        return None
    missing = [f"--{name} (or {_VARIABLES[name]})" for name, value in values.items() if value is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing; give coordinator, processes and process, or none of them")
    count, index = (_integer(name, values[name]) for name in ("processes", "process"))
    if not 0 <= index < count:
        raise ValueError(f"--process is {index} of {count} processes; expected 0 to {count - 1}")
    host, _, port = values["coordinator"].rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator is {values['coordinator']!r}; expected HOST:PORT, of process 0")
    return dict(coordinator_address=values["coordinator"], num_processes=count, process_id=index)


def _integer(name, value):
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"--{name} (or {_VARIABLES[name]}) is {value!r}; expected a whole number") from None


def check_devices():
    """Raises ValueError where JAX has no devices of the platform that JAX_PLATFORMS asks for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        told = " ".join(str(error).split())[:200]
        raise ValueError(
            f"JAX finds no devices (JAX_PLATFORMS is {jax.config.jax_platforms or 'not set'}): install its part for "
            f"them, as by pip install -c constraints.txt -e '.[cuda]' or '.[tpu]' ({told or 'it is missing'})"
        ) from error


def first():
    """Whether this is process 0, which alone prints and writes what all have in common."""
    return jax.process_index() == 0


def name():
    """What this process is called in messages: 'process 1 of 4 on HOST'."""
    return f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"


def worst(number):
    """The largest of all processes' numbers, which all must give at the same place of the program."""
    return number if jax.process_count() == 1 else int(np.max(multihost_utils.process_allgather(np.int32(number))))


def wait(what):
    """Until all processes are at this place, which bears the name `what`; for up to a day."""
    if jax.process_count() > 1:
        multihost.sync_global_processes(what, timeout=_APART)


def leave(status, blameless=False):
    """Has this process end with `status`, once it is at its end, without waiting for others, as JAX would for minutes.

    They wait for this one, in the middle of a step; when it is gone they are told that it is dead.

    Args:
        blameless: it ends because another is gone: it lives on until JAX has said which, and has ended it with 134.
            Were it gone too, JAX would name both.
    """

    def end():
        sys.stdout.flush()
        sys.stderr.flush()
        if blameless:
            time.sleep(2 * HEARTBEAT)
        os._exit(status)

    if jax.process_count() > 1:
        atexit.register(end)  # what is registered last runs first


def fetch(tree):
    """A tree of arrays as numpy on process 0, None elsewhere; all processes take part, one leaf at a time."""
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    whole = []
    for leaf in leaves:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
        whole.append(leaf if first() else None)
    return jax.tree.unflatten(structure, whole) if first() else None


def together(jitted):
    """The jitted function, compiled on all processes before any runs it.

    One that is minutes ahead would give up waiting for the others, as gloo does on CPUs after 30 s.
    """
    if jax.process_count() == 1:
        return jitted
    compiled = None

    def call(*arguments):
        nonlocal compiled
        if compiled is None:
            compiled = jitted.lower(*arguments).compile()
            multihost.sync_global_processes("compiled", timeout=_COMPILING)
        return compiled(*arguments)

    return call


class Told(BaseException):
    """A SIGTERM came while the process waited for its data."""


class Ending:
    """While it listens, a SIGTERM does not end the process: `told(step)` becomes true, for all at the same step.

    Of several processes, JAX's preemption service passes on what any of them was told.
    """

    def __init__(self):
        self._told, self._waits, self._before = False, False, None

    def listen(self):
        """Takes the signal from here to `close`; does nothing outside of the main thread, which alone gets it."""
        alone = jax.process_count() == 1  # else the signal is JAX's
        if alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._tell)

    def close(self):
        """Gives the signal back."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _tell(self, number, frame):
        self._told = True
        if self._waits:
            raise Told

    @contextlib.contextmanager
    def waiting(self):
        """Within it the signal raises Told, as what is waited for may never come; only where the process is alone."""
        self._waits = True
        try:
            if self._told:  # since it was last asked, as while a sample video was made
                raise Told
            yield
        finally:
            self._waits = False

    def told(self, step):
        """Whether to save and end after this step; to be asked after every step."""
        return self._told or (jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step))
