"""The launch scripts: what they write or start, given stand-ins for what they would call."""

import math
import os
import pathlib
import subprocess

import pytest
import yaml

from emo_jax.training import processes

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"
ARGUMENTS = ["--config", "configs/base.py:image", "--workdir", "/mnt/it's #1", "--config.train.mesh.fsdp=-1"]


def run(script, *arguments, **variables):
    """The finished process of a script, in an environment of PATH and the variables alone."""
    environment = {"PATH": os.environ["PATH"]} | variables
    return subprocess.run([LAUNCH / script, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def manifest(kind, **variables):
    done = run("gke.sh", kind, *ARGUMENTS, IMAGE="registry/emo:1", CLAIM="files", **variables)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def parts(found):
    """(spec of the JobSet, of its one job, of that job's pods, the one container)."""
    (replicated,) = found["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    return found["spec"], job, job["template"]["spec"], container


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_a_jobset_of_one_pod_for_each_host(kind):
    found = manifest(kind, NAME="mine", RESTARTS="7")
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert found["metadata"]["name"] == "mine"
    spec, job, pod, container = parts(found)
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"]
    assert container["image"] == "registry/emo:1" and container["command"] == ["emo", "train", *ARGUMENTS]
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "files"}
    assert pod["terminationGracePeriodSeconds"] > 2 * processes.HEARTBEAT

    # what ends one ends all, and all start again, but after bad input; a pod's policy demands that it never restarts
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never" and spec["failurePolicy"]["maxRestarts"] == 7
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"containerName": "emo", "operator": "In", "values": [2]}}
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


@pytest.mark.parametrize("topology, chips, hosts", [("4x4x4", "4", 16), ("16x16", "4", 64), ("2x4", "8", 1)])
def test_a_tpu_slice_has_the_hosts_of_its_topology(topology, chips, hosts):
    found = manifest("tpu", ACCELERATOR="tpu-v5-lite-podslice", TOPOLOGY=topology, DEVICES=chips)
    _, job, pod, container = parts(found)
    assert container["resources"]["limits"] == {"google.com/tpu": int(chips)}
    assert job["completions"] == hosts == math.prod(map(int, topology.split("x"))) // int(chips)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert container["env"] == []


def test_gpu_hosts_are_told_of_each_other_by_the_names_that_emo_train_reads():
    _, job, pod, container = parts(manifest("gpu", NAME="mine", HOSTS="3"))
    assert job["completions"] == 3 and container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    told = {variable["name"]: variable for variable in container["env"]}
    assert set(processes._VARIABLES.values()) <= set(told)
    # JobSet calls a pod JOBSET-JOB-REPLICA-INDEX, in the domain JOBSET
    assert told["JAX_COORDINATOR_ADDRESS"]["value"] == "mine-hosts-0-0.mine:12321"
    assert told["JAX_NUM_PROCESSES"]["value"] == "3"
    source = told["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert source == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.mark.parametrize("arguments, variables, told", [
    (["xpu"], dict(IMAGE="a", CLAIM="b"), "unknown kind xpu; expected tpu or gpu"),
    (["tpu"], dict(CLAIM="b"), "IMAGE: the image to run"),
    ([], {}, "tpu or gpu"),
])  # fmt: skip
def test_what_a_manifest_lacks_is_one_line(arguments, variables, told):
    done = run("gke.sh", *arguments, **variables)
    assert done.returncode != 0 and not done.stdout
    assert told in done.stderr and done.stderr.count("\n") == 1


def test_one_host_trains_as_one_process_of_all_its_gpus(tmp_path):
    (tmp_path / "bin").mkdir()
    emo = tmp_path / "bin" / "emo"
    emo.write_text('#!/bin/sh\nenv | grep -E "^(JAX|XLA|NCCL)" | sort\nprintf "%s\\n" "$@"\nexit 143\n')
    emo.chmod(0o755)
    done = run("gpu_host.sh", *ARGUMENTS, VENV=str(tmp_path), JAX_NUM_PROCESSES="4")
    assert done.returncode == 143  # that of emo train
    assert done.stdout.splitlines() == [
        "JAX_PLATFORMS=cuda", "NCCL_DEBUG=WARN", "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92", "train", *ARGUMENTS
    ]  # fmt: skip
