#!/usr/bin/env bash
# Prints the manifest of a Kubernetes Job that makes many videos: WORKERS pods take the next videos that nobody works on.
#   WORKERS=8 IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/emo CLAIM=emo-files launch/gke_generate.sh \
#       --manifest /mnt/pairs.csv --output /mnt/videos --checkpoint /mnt/weights | kubectl apply -f -
#   kubectl delete job emo-generate
# CLAIM is a ReadWriteMany volume, mounted at /mnt; it must be a file system (Filestore), because a bucket has no atomic
# creation of files. Videos that are there are skipped, so that pods may be preempted and restarted.
set -euo pipefail

# ---- environment
IMAGE=${IMAGE:?the image to run}
CLAIM=${CLAIM:?the volume claim of the inputs and videos}
NAME=${NAME:-emo-generate}
WORKERS=${WORKERS:-4}
RESTARTS=${RESTARTS:-20}
ACCELERATOR=${ACCELERATOR:-nvidia-l4}
DEVICES=${DEVICES:-1} # per pod

command="emo, generate"
quote="'" # doubled inside a single-quoted YAML string
for argument in "$@"; do
  command+=", '${argument//$quote/$quote$quote}'"
done

cat <<YAML
apiVersion: batch/v1
kind: Job
metadata:
  name: $NAME
spec:
  completionMode: Indexed
  completions: $WORKERS
  parallelism: $WORKERS
  backoffLimitPerIndex: $RESTARTS
  podFailurePolicy:
    rules:
      - {action: FailJob, onExitCodes: {containerName: emo, operator: In, values: [2]}}  # bad input
      - {action: FailIndex, onExitCodes: {containerName: emo, operator: In, values: [1]}}  # some videos failed
      - {action: Ignore, onPodConditions: [{type: DisruptionTarget}]}
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 30
      nodeSelector: {cloud.google.com/gke-accelerator: $ACCELERATOR}
      containers:
        - name: emo
          image: $IMAGE
          command: [$command]
          resources: {limits: {nvidia.com/gpu: $DEVICES}}
          volumeMounts: [{name: files, mountPath: /mnt}]
      volumes:
        - {name: files, persistentVolumeClaim: {claimName: $CLAIM}}
YAML
