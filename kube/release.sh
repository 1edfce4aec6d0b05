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

# Its exit status is the command's.
exec kubectl -n $namespace run "$name" --rm --attach --quiet --restart Never --labels app.kubernetes.io/name=release \
  --image "$(gateway '.containers[0].image')" --image-pull-policy "$(gateway '.containers[0].imagePullPolicy')" \
  --env "USER=${USER:-}" --override-type strategic --overrides "$pod" -- "$@"
