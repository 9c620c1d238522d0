#!/usr/bin/env bash
# Prints the manifest of a training run on GKE: a JobSet with one pod per host.
#   IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/emo CLAIM=emo-files launch/gke.sh tpu \
#       --config configs/base.py:image --workdir /mnt/runs/image --config.data.directory=/mnt/data \
#       --config.train.batch_size=64 | kubectl apply -f -
#   SLICES=2 IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/emo CLAIM=emo-files launch/gke.sh tpu \
#       --config configs/base.py:image --workdir /mnt/runs/image --config.data.directory=/mnt/data \
#       --config.train.batch_size=128 --config.train.mesh.dcn_data=2 | kubectl apply -f -   # one run on two slices
#   kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=emo,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
#   kubectl delete jobset emo
# Requirements: the JobSet controller (0.6 or newer) and node pools of the accelerator; an image whose working folder is
# this checkout, with `emo` installed (pip install -c constraints.txt -e '.[tpu]', for GPUs '.[cuda]'); CLAIM, a
# ReadWriteMany volume (Filestore, a mounted bucket), mounted at /mnt. When a pod ends, all pods restart from the
# newest checkpoint. Bad input (status 2) and divergence (status 3) end the job.
set -euo pipefail

# ---- environment
KIND=${1:?tpu or gpu}
shift
IMAGE=${IMAGE:?the image to run}
CLAIM=${CLAIM:?the volume claim of runs and data}
NAME=${NAME:-emo}
RESTARTS=${RESTARTS:-20}
case "$KIND" in
  tpu)
    ACCELERATOR=${ACCELERATOR:-tpu-v5p-slice}
    TOPOLOGY=${TOPOLOGY:-4x4x4}
    SLICES=${SLICES:-1} # each a separate node pool of several hosts
    DEVICES=${DEVICES:-4} # per host
    HOSTS=$((${TOPOLOGY//x/*} / DEVICES))
    if ((SLICES < 1 || (SLICES > 1 && HOSTS == 1))); then
      echo "SLICES is $SLICES with $HOSTS hosts each; expected 1 or more, and several hosts per slice for more than 1" >&2
      exit 2
    fi
    resource=google.com/tpu
    selector="{cloud.google.com/gke-tpu-accelerator: $ACCELERATOR, cloud.google.com/gke-tpu-topology: $TOPOLOGY}"
    variables='[]' # GKE gives each pod the addresses of the others, which JAX reads
    ;;
  gpu)
    ACCELERATOR=${ACCELERATOR:-nvidia-h100-80gb}
    HOSTS=${HOSTS:-2}
    if ((${SLICES:=1} != 1)); then
      echo "SLICES is $SLICES; expected 1 for gpu, where HOSTS sets the number of hosts" >&2
      exit 2
    fi
    DEVICES=${DEVICES:-8}
    resource=nvidia.com/gpu
    selector="{cloud.google.com/gke-accelerator: $ACCELERATOR}"
    # JobSet gives pod 0 the host name NAME-hosts-0-0.NAME.
    variables="
                    - {name: JAX_COORDINATOR_ADDRESS, value: '$NAME-hosts-0-0.$NAME:12321'}
                    - {name: JAX_NUM_PROCESSES, value: '$HOSTS'}
                    - name: JAX_PROCESS_ID
                      valueFrom: {fieldRef: {fieldPath: \"metadata.annotations['batch.kubernetes.io/job-completion-index']\"}}
                    - {name: XLA_PYTHON_CLIENT_MEM_FRACTION, value: '0.92'}
                    - {name: NCCL_DEBUG, value: WARN}"
    ;;
  *)
    echo "unknown kind $KIND; expected tpu or gpu" >&2
    exit 2
    ;;
esac

command="emo, train"
quote="'" # doubled inside a single-quoted YAML string
for argument in "$@"; do
  command+=", '${argument//$quote/$quote$quote}'"
done

cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    # All pods of a job run on one node pool: one slice, or one group of GPU hosts.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $RESTARTS
    rules:
      - {name: bad-input, action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}
  replicatedJobs:
    - name: hosts
      replicas: $SLICES
      template:
        spec:
          completionMode: Indexed
          completions: $HOSTS
          parallelism: $HOSTS
          backoffLimit: 0  # a single pod cannot rejoin the run; all pods restart
          podFailurePolicy:
            rules:
              - {action: FailJob, onExitCodes: {containerName: emo, operator: In, values: [2, 3]}}
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120  # time to save after SIGTERM
              nodeSelector: $selector
              tolerations:
                - {key: $resource, operator: Exists, effect: NoSchedule}
              containers:
                - name: emo
                  image: $IMAGE
                  command: [$command]
                  env: $variables
                  resources: {limits: {$resource: $DEVICES}}
                  volumeMounts:
                    - {name: files, mountPath: /mnt}
                    - {name: memory, mountPath: /dev/shm}
              volumes:
                - {name: files, persistentVolumeClaim: {claimName: $CLAIM}}
                - {name: memory, emptyDir: {medium: Memory}}  # data workers and NCCL use shared memory
YAML
