#!/bin/sh
# Says which version answers, where the model-store is on a volume: kube/release.sh try 2 --share 10%
#
# It runs `python -m gateway.release` in a Pod, on the cluster that kubectl points at. With API keys, the Secret
# release-key has one as GATEWAY_KEY, for --gateway http://gateway-pods:9696.
set -eu

namespace=image-classifier
name=release-$(date +%s)-$$

gateway() {
  kubectl -n $namespace get deployment gateway -o "jsonpath={.spec.template.spec$1}"
}

# As a gateway's Pod, but with a store that can be written.
# shellcheck disable=SC2016 # Kubernetes expands $(…), not this shell
pod='{"spec": {
  "automountServiceAccountToken": false,
  "enableServiceLinks": false,
  "securityContext": {
    "runAsNonRoot": true, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"}
  },
  "containers": [{
    "name": "'$name'",
    "command": ["python", "-m", "gateway.release", "$(GATEWAY_MODEL_NAME)", "--store", "/models"],
    "env": '$(gateway '.containers[0].env')',
    "envFrom": [{"secretRef": {"name": "release-key", "optional": true}}],
    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
    "securityContext": {
      "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true
    },
    "volumeMounts": [{"name": "model-store", "mountPath": "/models"}]
  }],
  "volumes": [{"name": "model-store", "persistentVolumeClaim": {"claimName": "model-store"}}]
}}'

# Ctrl-C ends the Pod too; as process 1, its command does not hear SIGTERM.
trap 'kubectl -n $namespace delete pod "$name" --ignore-not-found --now --wait=false >/dev/null' EXIT
trap 'exit 130' INT TERM
kubectl -n $namespace run "$name" --quiet --restart Never --labels app.kubernetes.io/name=release \
  --image "$(gateway '.containers[0].image')" --image-pull-policy "$(gateway '.containers[0].imagePullPolicy')" \
  --env "USER=${USER:-$(id -un)}" --override-type strategic --overrides "$pod" -- "$@" >/dev/null

# A part of the state of the Pod's container; nothing while there is none, or the cluster does not answer.
get_state() {
  found=$(kubectl -n $namespace get pod "$name" --ignore-not-found \
    -o "jsonpath={.metadata.name} {.status.containerStatuses[0].state.$1}") || return 0
  if [ -z "$found" ]; then
    echo "The Pod was removed. To see whether it made the change: kube/release.sh history" >&2
    exit 1
  fi
  echo "${found#* }"
}

# Not by `run --attach`, which loses what was printed before kubectl attached.
follow() {
  kubectl -n $namespace logs --follow "$name" || true
  for _ in 1 2 3 4 5; do
    status=$(get_state terminated.exitCode)
    [ -z "$status" ] || return 0
    sleep 1
  done
  echo "The connection has ended before the command. Following it again, from its start. Ctrl-C ends both." >&2
}

give_up=$(($(date +%s) + 60)) started="" status=""
until [ "$started" ]; do
  if [ "$(date +%s)" -gt $give_up ]; then
    echo "$name did not start within a minute:" >&2
    kubectl -n $namespace get events --field-selector "involvedObject.name=$name" >&2
    exit 1
  fi
  started=$(get_state '*.startedAt')
  [ "$started" ] || sleep 0.2
done
until [ "$status" ]; do follow; done
exit "$status"
