#!/bin/sh
# Applies an overlay, replaces Pods whose image was built again, and waits until all are ready: kube/apply.sh local
set -eu

overlay=$(dirname "$0")/overlays/$1
namespace="image-classifier"

applied=$(kubectl apply -k "$overlay")
echo "$applied"

# Under the tag `latest`, another image is not another spec: Kubernetes would keep the old Pods.
for name in model gateway; do
  image=$(kubectl -n $namespace get deployment $name -o jsonpath='{.spec.template.spec.containers[0].image}')
  case "$image $applied" in
    *":latest "*"deployment.apps/$name unchanged"*) kubectl -n $namespace rollout restart deployment/$name ;;
  esac
done

# Each container of the newest Pods that cannot start, and why. Not ErrImagePull, because the next try may succeed.
stuck() {
  each='{.state.waiting.reason} {.image} {.state.waiting.message}{"\n"}'
  for tier in model gateway; do
    newest=$(kubectl -n $namespace get replicasets -l app.kubernetes.io/name=$tier -o \
      jsonpath='{.items[-1:].metadata.labels.pod-template-hash}' \
      --sort-by='{.metadata.annotations.deployment\.kubernetes\.io/revision}')
    kubectl -n $namespace get pods -l "app.kubernetes.io/name=$tier,pod-template-hash=$newest" -o \
      jsonpath="{range .items[*].status.containerStatuses[*]}$each{end}"
  done | sort -u |
    grep -E '^(ErrImageNeverPull|ImagePullBackOff|InvalidImageName|CreateContainerConfigError|CrashLoopBackOff) '
}

for name in model gateway; do
  tries=0 began=$(date +%s)
  until kubectl -n $namespace rollout status deployment/$name --timeout 10s >/dev/null 2>&1; do
    tries=$((tries + 1))
    if found=$(stuck); then
      printf 'These containers cannot start:\n%s\n' "$found"
      case $found in
        *Image*) echo "Build and load the images (make images; kind load docker-image NAME, or minikube image load NAME)," \
          "or push them and set their names and tags in $overlay/kustomization.yaml." ;;
        *) echo "See kubectl -n $namespace logs deployment/NAME, and docs/deploy.md." ;;
      esac
      exit 1
    elif [ $tries = 3 ]; then # where nodes are added by themselves, it may go away
      kubectl -n $namespace get events --field-selector reason=FailedScheduling
    elif [ $(($(date +%s) - began)) -ge 600 ]; then
      echo "deployment/$name was not ready after ten minutes. See kubectl -n $namespace describe pods"
      exit 1
    fi
    sleep 2 # kubectl does not wait for a Deployment that has missed its progress deadline
  done
  echo "deployment/$name is ready"
done
