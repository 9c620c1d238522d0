"""The launch scripts, with fakes for the programs that they call."""

import ast
import math
import os
import pathlib
import re
import shlex
import subprocess
import sys
import types

import numpy as np
import pytest
import yaml

from emo_jax import config
from emo_jax.cli import main as cli
from emo_jax.distributed import processes
from emo_jax.distributed.mesh import AXES, check_mesh

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"
ARGUMENTS = ["--config", "configs/base.py:image", "--workdir", "/mnt/it's #1", "--config.train.mesh.fsdp=-1"]


def run(script, *arguments, **variables):
    """Runs a script in an environment of PATH and the given variables only; returns the finished process."""
    environment = {"PATH": os.environ["PATH"]} | variables
    return subprocess.run([LAUNCH / script, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def fake_program(path, text):
    """Writes an executable sh script to a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def manifest(kind, **variables):
    done = run("gke.sh", kind, *ARGUMENTS, IMAGE="registry/emo:1", CLAIM="files", **variables)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def specs_of(found):
    """Returns the specs of the JobSet, of its job and of the job's pods, and the container."""
    (replicated,) = found["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    return found["spec"], job, job["template"]["spec"], container


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_jobset_has_one_pod_per_host(kind):
    found = manifest(kind, NAME="mine", RESTARTS="7")
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert found["metadata"]["name"] == "mine"
    spec, job, pod, container = specs_of(found)
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"]
    assert container["image"] == "registry/emo:1" and container["command"] == ["emo", "train", *ARGUMENTS]
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "files"}
    assert pod["terminationGracePeriodSeconds"] > 2 * processes.HEARTBEAT

    # When one pod ends, all restart, except after bad input. A pod failure policy requires restartPolicy Never.
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never" and spec["failurePolicy"]["maxRestarts"] == 7
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"containerName": "emo", "operator": "In", "values": [2, 3]}}
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


@pytest.mark.parametrize("topology, chips, hosts", [("4x4x4", "4", 16), ("16x16", "4", 64), ("2x4", "8", 1)])
def test_hosts_of_a_tpu_topology(topology, chips, hosts):
    found = manifest("tpu", ACCELERATOR="tpu-v5-lite-podslice", TOPOLOGY=topology, DEVICES=chips)
    _, job, pod, container = specs_of(found)
    assert container["resources"]["limits"] == {"google.com/tpu": int(chips)}
    assert job["completions"] == hosts == math.prod(map(int, topology.split("x"))) // int(chips)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert container["env"] == []


@pytest.mark.parametrize("kind, slices", [("tpu", 1), ("tpu", 3), ("gpu", 1)])
def test_one_job_per_slice(kind, slices):
    found = manifest(kind, **(dict(SLICES=str(slices)) if slices > 1 else {}))
    assert [job["replicas"] for job in found["spec"]["replicatedJobs"]] == [slices]
    topology = found["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert topology == "cloud.google.com/gke-nodepool"


def test_gpu_hosts_get_the_variables_that_emo_train_reads():
    _, job, pod, container = specs_of(manifest("gpu", NAME="mine", HOSTS="3"))
    assert job["completions"] == 3 and container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    variables = {variable["name"]: variable for variable in container["env"]}
    assert set(processes._VARIABLES.values()) <= set(variables)
    # JobSet names a pod JOBSET-JOB-REPLICA-INDEX, in the domain JOBSET.
    assert variables["JAX_COORDINATOR_ADDRESS"]["value"] == "mine-hosts-0-0.mine:12321"
    assert variables["JAX_NUM_PROCESSES"]["value"] == "3"
    source = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert source == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.mark.parametrize("arguments, variables, value", [
    (["xpu"], dict(IMAGE="a", CLAIM="b"), "xpu"),
    (["tpu"], dict(CLAIM="b"), "IMAGE"),
    (["gpu"], dict(IMAGE="a", CLAIM="b", SLICES="2"), "SLICES"),
    (["tpu"], dict(IMAGE="a", CLAIM="b", SLICES="2", TOPOLOGY="2x2"), "SLICES is 2"),
    (["tpu"], dict(IMAGE="a", CLAIM="b", SLICES="0"), "SLICES is 0"),
    ([], {}, "tpu or gpu"),
])  # fmt: skip
def test_bad_input_of_gke_is_reported_on_one_line(arguments, variables, value):
    done = run("gke.sh", *arguments, **variables)
    assert done.returncode != 0 and not done.stdout
    assert value in done.stderr and done.stderr.count("\n") == 1


PRINT = 'env | grep -E "^(JAX|XLA|NCCL)" | sort\nprintf "%s\\n" "$@"\nexit 143'


def test_gpu_host_starts_one_process(tmp_path):
    fake_program(tmp_path / "bin" / "emo", PRINT)
    done = run("gpu_host.sh", *ARGUMENTS, VENV=str(tmp_path), JAX_NUM_PROCESSES="4")
    assert done.returncode == 143  # the status of emo train
    assert done.stdout.splitlines() == [
        "JAX_PLATFORMS=cuda", "NCCL_DEBUG=WARN", "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92", "train", *ARGUMENTS
    ]  # fmt: skip


ENDS = [  # exit status of emo, restarts so far, whether the job is queued again
    (143, 99, True), (134, 0, True), (1, 19, True), (1, 20, False), (2, 0, False), (3, 0, False), (0, 0, False),
]  # fmt: skip


@pytest.mark.parametrize("status, restarts, again", ENDS)
def test_slurm_starts_one_process_per_node(tmp_path, status, restarts, again):
    fake_program(tmp_path / "bin" / "emo", PRINT.replace("143", str(status)))
    fake_program(tmp_path / "bin" / "scontrol", """
        case $1 in
          show) [ "$*" = "show hostnames node-[07-08]" ] && printf "node-07\\nnode-08\\n" ;;
          *) echo "scontrol $*" ;;
        esac
    """)  # fmt: skip
    fake_program(tmp_path / "bin" / "srun", """
        while [ "${1#--}" != "$1" ]; do shift; done
        for i in 0 1; do SLURM_NTASKS=2 SLURM_PROCID=$i "$@"; done
    """)  # fmt: skip
    found = dict(SLURM_SUBMIT_DIR="/", SLURM_JOB_ID="4099", SLURM_JOB_NODELIST="node-[07-08]", SLURM_CPUS_PER_TASK="64")
    found["SLURM_RESTART_COUNT"] = str(restarts)
    done = run("slurm.sh", *ARGUMENTS, VENV=str(tmp_path), PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", **found)
    assert done.returncode == status, done.stderr
    expected = []
    for i in range(2):
        expected += [
            "JAX_COORDINATOR_ADDRESS=node-07:61443", "JAX_NUM_PROCESSES=2", "JAX_PLATFORMS=cuda", f"JAX_PROCESS_ID={i}",
            "NCCL_DEBUG=WARN", "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92", "train", *ARGUMENTS,
        ]  # fmt: skip
    assert done.stdout.splitlines() == expected + ["scontrol requeue 4099"] * again
    assert option("slurm.sh", "--ntasks-per-node") == "1"


@pytest.mark.parametrize("status, restarts, again", ENDS)
def test_slurm_array_task_runs_its_point(tmp_path, status, restarts, again):
    fake_program(tmp_path / "bin" / "emo", f"""
        for last; do :; done
        [ "$last" = --list ] && printf "one\\ntwo\\n" && exit
        echo "$@"; exit {status}
    """)  # fmt: skip
    fake_program(tmp_path / "bin" / "srun", 'exec "$@"')
    fake_program(tmp_path / "bin" / "scontrol", 'echo scontrol "$@"')
    found = dict(SLURM_SUBMIT_DIR="/", SLURM_JOB_ID="4099", SLURM_RESTART_COUNT=str(restarts))
    found |= dict(SLURM_ARRAY_JOB_ID="4098", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    done = run("slurm_sweep.sh", "a.py", "--output", "out", VENV=str(tmp_path), SLURM_ARRAY_TASK_ID="1", **found)
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.splitlines() == ["sweep a.py --output out --points two"] + ["scontrol requeue 4098_1"] * again
    done = run("slurm_sweep.sh", "a.py", VENV=str(tmp_path), SLURM_ARRAY_TASK_ID="2", **found)
    assert done.returncode and not done.stdout and "2 points" in done.stderr


def test_two_processes_on_this_machine(tmp_path):
    fake_program(tmp_path / "bin" / "emo", 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES $JAX_PLATFORMS $*"; exit 143')
    done = run("two_processes.sh", *ARGUMENTS, VENV=str(tmp_path))
    assert done.returncode == 143, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"{i} of 2 cpu train {' '.join(ARGUMENTS)}" for i in (0, 1)]


@pytest.fixture
def hosts(tmp_path):
    """Variables with which tpu_pod.sh treats a local folder as its hosts."""
    fake_program(tmp_path / "bin" / "git", "")
    fake_program(tmp_path / "bin" / "gcloud", f"""
        cd {tmp_path}
        while [ $# -gt 1 ]; do [ "$1" = --command ] && exec sh -c "$2"; shift; done
    """)  # fmt: skip
    fake_program(tmp_path / "bin" / "tar", "mkdir emo_jax")
    for name, before in [("new", "pass"), ("old", "sys.version_info = (3, 10)")]:
        fake_program(tmp_path / "bin" / name, f"""
            [ "$1" = -c ] && exec {sys.executable} -c "import sys; {before}; $2"
            mkdir -p .venv/bin && ln -s {tmp_path / "bin" / "pip"} .venv/bin/pip
        """)  # fmt: skip
    fake_program(tmp_path / "bin" / "pip", 'echo pip "$@"')
    return dict(NAME="mine", ZONE="here", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def test_tpu_hosts_install_the_pinned_versions(hosts):
    done = run("tpu_pod.sh", "install", PYTHON="new", **hosts)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "pip install --quiet --constraint constraints.txt -e .[tpu]\n"


@pytest.mark.parametrize("python", ["old", "python3.999"])
def test_old_python_on_tpu_hosts_is_reported_on_one_line(hosts, python):
    done = run("tpu_pod.sh", "install", PYTHON=python, **hosts)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{python} is not Python 3.11" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("status, tries", [(143, 2), (1, 2), (255, 1), (0, 1), (2, 1), (3, 1)])
def test_tpu_hosts_restart_after_certain_exit_statuses(tmp_path, hosts, status, tries):
    fake_program(tmp_path / "emo_jax" / ".venv" / "bin" / "emo", f'echo "$@"; exit {status}')
    done = run("tpu_pod.sh", "train", "--workdir", "a folder", TRIES="2", PAUSE="0", **hosts)
    assert done.returncode == status
    lines = done.stderr.splitlines()
    assert len(lines) == tries - 1 and all(f"status {status}" in line for line in lines)
    assert done.stdout.splitlines() == ["train --workdir a folder"] * tries


# ---- the commands in the scripts' headers and in docs/plan.md


def option(script, name):
    """Returns the default of a script's variable, or its value for sbatch."""
    return re.search(rf"{name}=(?:\${{{name}:-)?([\w-]+)", (LAUNCH / script).read_text())[1]


def slices(words):
    """Returns the number of TPU slices of a command."""
    if "--slices" in words:
        return int(words[words.index("--slices") + 1])
    return next((int(word.removeprefix("SLICES=")) for word in words if word.startswith("SLICES=")), 1)


def devices(words):
    """Returns the number of devices of a command."""
    if "plan" in words:
        return slices(words) * math.prod(map(int, words[words.index("--topology") + 1].split(":")[1].split("x")))
    (script,) = (pathlib.Path(word).name for word in words if word.startswith("launch/"))
    if script == "tpu_pod.sh":
        return int(option(script, "TYPE").removeprefix("v5p-")) // 2  # the type counts cores, two per chip
    if script == "gke.sh" and "tpu" in words:
        return slices(words) * math.prod(map(int, option(script, "TOPOLOGY").split("x")))
    if script == "slurm.sh":
        return int(words[words.index("--nodes") + 1]) * int(option(script, "--gpus-per-node"))
    if script == "two_processes.sh":
        return int(option(script, "PROCESSES")) * int(option(script, "DEVICES"))
    return 8  # the GPUs of a host


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections
@pytest.mark.parametrize(
    "file",
    ["docs/plan.md", *(f"launch/{name}.sh" for name in ("two_processes", "gpu_host", "slurm", "tpu_pod", "gke"))],
)
def test_batches_of_documented_commands_divide_over_their_devices(file):
    lines = re.sub(r" \\\n#?", "", (LAUNCH.parent / file).read_text()).splitlines()
    shown = [line for line in lines if re.search(r"(launch/\w+\.sh|emo plan) .*--config ", line)]
    shown = [shlex.split(line.lstrip("# ")) for line in shown if "--program denoise" not in line]
    assert shown
    for words in shown:
        verb = "plan" if "plan" in words else "train"
        options = words[words.index("--config") : words.index("|") if "|" in words else None]
        chosen = config.parse(cli.make_parser(verb).parse_known_args([verb, *options])[1])
        assert chosen.train.mesh.dcn_data == slices(words)
        sizes = {axis: chosen.train.mesh[axis] for axis in AXES}
        fixed = math.prod(size for size in sizes.values() if size != -1)
        sizes = {axis: devices(words) // fixed if size == -1 else size for axis, size in sizes.items()}
        fakes = [types.SimpleNamespace(process_index=i // 4) for i in range(devices(words))]  # 4 per host at least
        grid = np.array(fakes).reshape(tuple(sizes.values()))
        check_mesh(types.SimpleNamespace(shape=sizes, devices=grid), chosen)


def run_small_weights(folder, *arguments, **variables):
    """Runs small_weights.sh with programs that log their arguments and make the folder after -o or --output."""
    log = folder / "log"
    log.write_text("")
    make = f'echo "$@" >> {log}; while [ $# -gt 0 ]; do case $1 in -o|--output) mkdir -p "$2";; esac; shift; done'
    for program in ("emo", "python"):
        fake_program(folder / "venv" / "bin" / program, make)
    places = dict(VENV=folder / "venv", DATA=folder / "data", RUNS=folder / "runs", SHARDS=2)
    done = run("small_weights.sh", *arguments, **{name: str(value) for name, value in (places | variables).items()})
    return done, log.read_text().splitlines()


def test_small_weights_runs_every_stage_on_the_stage_before(tmp_path):
    done, lines = run_small_weights(tmp_path, "--config.train.steps=3")
    assert done.returncode == 0, done.stderr
    runs, trained = tmp_path / "runs", [line for line in lines if line.startswith("train")]
    stages = re.findall(r"--config small:(\S+) --workdir (\S+)", "\n".join(trained))
    assert stages == [(name, str(runs / name)) for name in ("vae", "video", "speed")]
    before = re.findall(r"init_from=(\S*) ", "\n".join(trained))
    assert before == ["", *(str(runs / name) for name in ("lips", "video"))]
    (lips,) = [line for line in lines if "lip_pretraining" in line]
    assert f"--checkpoint {runs / 'vae'} --data {tmp_path}/data/people-0 " in lips
    assert lips.endswith(f"people-1 {tmp_path}/data/lips.npz --steps 1500 -o {runs / 'lips'}")
    (voices,) = [line for line in lines if "synthetic.people.lips" in line]
    assert voices.endswith(f"--people 3000 -o {tmp_path}/data/lips.npz")
    assert all(line.endswith("--config.train.steps=3") for line in trained)
    for line in trained:
        (text,) = re.findall(r"data.sources=(\S+)", line)
        sources = ast.literal_eval(text)
        names = [pathlib.Path(directory).name for directory, _, _ in sources]
        assert names == ["people-0", "people-1"]
    assert [line for line in lines if line.startswith("export")] == [
        f"export --workdir {runs / 'speed'} --output {runs / 'weights'}"
    ]


def test_small_weights_continues_without_rendering_again(tmp_path):
    _, first = run_small_weights(tmp_path)
    done, second = run_small_weights(tmp_path, STAGES="video")
    assert done.returncode == 0
    assert sum("prepare synthetic" in line for line in first) == 2
    assert [line.split()[0] for line in second] == ["train"]


def test_small_weights_rejects_an_unknown_stage(tmp_path):
    done, lines = run_small_weights(tmp_path, STAGES="vae sound")
    assert done.returncode == 2 and "sound" in done.stderr and not lines


def test_slurm_array_of_videos_is_queued_again_only_if_preempted(tmp_path):
    for status, again in ((0, 0), (1, 0), (2, 0), (143, 1)):
        fake_program(tmp_path / "bin" / "emo", f'echo "$*"; exit {status}')
        fake_program(tmp_path / "bin" / "srun", 'exec "$@"')
        fake_program(tmp_path / "bin" / "scontrol", 'echo scontrol "$@"')
        found = dict(PATH=f"{tmp_path}/bin:{os.environ['PATH']}", SLURM_ARRAY_JOB_ID="4098", SLURM_ARRAY_TASK_ID="1")
        done = run("slurm_generate.sh", "--manifest", "a.csv", VENV=str(tmp_path), **found)
        assert (done.returncode, done.stderr) == (status, "")
        assert done.stdout.splitlines() == ["generate --manifest a.csv"] + ["scontrol requeue 4098_1"] * again


def test_kubernetes_job_of_videos():
    done = run("gke_generate.sh", "--manifest", "/mnt/it's.csv", IMAGE="registry/emo:1", CLAIM="files", WORKERS="3")
    assert done.returncode == 0, done.stderr
    spec = yaml.safe_load(done.stdout)["spec"]
    assert spec["completions"] == spec["parallelism"] == 3 and spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["emo", "generate", "--manifest", "/mnt/it's.csv"]
    actions = {tuple(rule["onExitCodes"]["values"]): rule["action"] for rule in spec["podFailurePolicy"]["rules"][:2]}
    assert actions == {(2,): "FailJob", (1,): "FailIndex"}
