#!/bin/sh
# Starts TensorFlow Serving on the model-store at MODEL_BASE_PATH; arguments are further flags.
# A store without a version of MODEL_NAME, such as a fresh mount, is first given the one that this image carries.
set -eu

home=$MODEL_BASE_PATH/$MODEL_NAME
last_file=$MODEL_BASE_PATH/.$MODEL_NAME.last-version  # as training/release/store.py keeps it
carried=/carried/$MODEL_NAME
server_uid=10001  # as USER in image-model.dockerfile

fail() {
  echo "$1" >&2
  exit 1
}

versions() {
  find "$1" -mindepth 1 -maxdepth 1 -name '[0-9]*' ! -name '*[!0-9]*' 2>/dev/null
}

# What root puts into someone's store belongs to its owner.
give_to_owner() {
  [ "$(id -u)" != 0 ] || chown -R --reference="$MODEL_BASE_PATH" "$@"
}

# Copy under a name that is no version, then rename: the server never sees half a version. What the image made by itself
# is version 0 in every store, and no export's number is 0. A released version gets a number that was not used here.
seed() {
  umask 022
  mkdir -p "$home" && draft=$(mktemp -d "$home/.seed-XXXXXX") || return 1
  # Of a release that the image carries, the stable version; without one, the newest.
  stable=$(sed -n 's/^  "stable": \([0-9]*\),$/\1/p' "$carried/release.json" 2>/dev/null || true)
  newest=$(versions "$carried" | sort -V | tail -n 1)
  number=${stable:-${newest##*/}}
  last=$(sed -n 's/^0*\([0-9][0-9]*\)$/\1/p' "$last_file" 2>/dev/null | grep . || echo 0)
  source=$carried/$number
  [ "$number" = 0 ] || [ "$number" -gt "$last" ] || number=$((last + 1))
  if ! { cp -R "$source/." "$draft" && chmod 755 "$draft"; }; then
    rm -rf "$draft"
    return 1
  fi
  give_to_owner "$home"
  if [ -n "$(versions "$home")" ] || ! mv -T "$draft" "$home/$number"; then
    rm -rf "$draft"  # another replica was quicker
  elif [ "$number" != 0 ] && echo "$number" 2>/dev/null >"$last_file"; then
    give_to_owner "$last_file"
  fi
}

# A folder that cannot be read would look empty.
for folder in "$MODEL_BASE_PATH" "$home"; do
  [ ! -d "$folder" ] || { [ -r "$folder" ] && [ -x "$folder" ]; } ||
    fail "User $(id -u) cannot read $folder. Run \`chmod -R a+rX\` on the folder that is mounted there"
done

if [ -z "$(versions "$home")" ]; then
  [ -d "$carried" ] || fail "Expected a version of '$MODEL_NAME' in $home. Received: none; this image carries $(ls /carried)"
  echo "No version in $home: putting the one of this image there"
  seed || fail "$home has no version, and user $(id -u) cannot write one there. \
Make it writable, or put a version there: see model-store/README.md"
fi

# Root was needed for the store only; as another user, this script goes on from its start.
[ "$(id -u)" != 0 ] ||
  exec setpriv "--reuid=$server_uid" "--regid=$server_uid" --clear-groups --inh-caps=-all --no-new-privs "$0" "$@"

# The versions on disk that the store's models.config names for this model; `python -m gateway.release` writes that
# file. Without a release document, it counts no more.
named_versions() {
  [ ! -e "$home/release.json" ] || awk -v "name=\"$MODEL_NAME\"" '
    $1 == "name:" { ours = $2 == name }
    ours && $1 == "versions:" { print $2 }' "$home/models.config" 2>/dev/null |
    grep -Fx "$(versions "$home" | sed 's|.*/0*\([0-9]\)|\1|')" |
    sed 's/.*/versions: &/'
}

# Write what the server reads again every 5 seconds, whole or not at all. If nothing is named, the last two versions stay
# loaded, so that an old one still answers where a gateway refuses the new one.
config=$(mktemp)
policy=
write_config() {
  named=$(named_versions)
  if [ -z "$named" ] && [ "${policy%% *}" = specific ]; then
    sleep 3  # a file that is replaced may be missing for a moment
    named=$(named_versions)
  fi
  [ -d "$home" ] || return 0  # a volume may be away, which releases nothing
  if [ -n "$named" ]; then policy="specific { $named }"; else policy="latest { num_versions: 2 }"; fi
  cat >"$config.draft" <<EOF
model_config_list {
  config {
    name: "$MODEL_NAME"
    base_path: "$home"
    model_platform: "tensorflow"
    model_version_policy { $policy }
  }
}
EOF
  cmp -s "$config.draft" "$config" || mv "$config.draft" "$config"
}
write_config
# It ends with the server, which takes this script's process. The embedded server follows release.json by itself.
while sleep 1 && [ -e "/proc/$$" ]; do write_config || true; done &

# num_load_threads: with 0, its default, nothing else happens while a version loads or a broken one is tried again.
# grpc_max_threads: a gateway asks 32 times at once; by default 4 for each CPU are answered, and the next refused.
# tensorflow_…_parallelism: one thread for each operation, and as many requests at a time as there are cores. On 2 cores
# 8 connections got 1.23 times the requests/s. A lone call pays: of 16 images 108 ms in place of 66, of 4 24 in place of
# 18, of 1 the same 8.
set -- tensorflow_model_server --port=8500 --rest_api_port=8501 "--model_config_file=$config" \
  --model_config_file_poll_wait_seconds=5 \
  --enable_batching --batching_parameters_file=/etc/serving/batching.config \
  --monitoring_config_file=/etc/serving/monitoring.config --enable_grpc_healthcheck_service \
  --num_load_threads=2 --grpc_max_threads=256 \
  --tensorflow_intra_op_parallelism=1 "--tensorflow_inter_op_parallelism=$(nproc)" "$@"
exec "$@"
