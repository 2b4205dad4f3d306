#!/bin/bash
# Build the image with buildah, run it, and check that it does what docker/README.md promises.
#
# Needs root (chroot, mounts), Debian or Ubuntu, and Python 3.11 or later; installs buildah and
# debootstrap if they are missing. The base image is made here with debootstrap from the mirror
# that apt uses; the Python packages are fetched here with the machine's own pip settings and go in
# as a folder of wheels. The image knows neither afterwards, which is checked too.
#
#   KEEP=1        keep the work folder and say where it is
#   MIRROR=URL    Debian mirror, where apt has none for bookworm
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
BUILD=${BUILD:-build}
BASE_TAR=$BUILD/image-test-base.tar # kept between runs; `make clean` removes it
IMAGE=localhost/mxnet-model-server:image-test
START_S=60                          # to the first healthy /ping
STOP_S=40                           # to the exit; the server's own shutdown timeout is 30
STEP_S=900                          # for one step of the build
export DEBIAN_FRONTEND=noninteractive BUILDAH_ISOLATION=chroot

work=
started=() # processes of this script, each ended in cleanup if it still runs

say() { printf '%s\n' "-- $*"; }
fail() {
  printf 'image-test: FAILED: %s\n' "$*" >&2
  for log in "$work"/*.log; do
    [ ! -s "$log" ] || { echo "--- ${log##*/}" >&2; tail -n 30 "$log" >&2; }
  done
  exit 1
}

# Everything buildah keeps is in the work folder: no image of this machine is seen or changed. With
# vfs a layer is a plain folder, which needs nothing of the kernel.
buildah_() {
  TMPDIR=$work timeout --foreground "$STEP_S" buildah --storage-driver vfs --root "$work/storage" \
    --runroot "$work/runroot" "$@"
}

descendants() {
  local child
  for child in $(ps -o pid= --ppid "$1"); do
    echo "$child"
    descendants "$child"
  done
}

cleanup() {
  local status=$? pid
  trap - EXIT INT TERM
  for pid in "${started[@]}"; do
    # shellcheck disable=SC2046 # one word per process
    kill -KILL $(descendants "$pid") "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  [ -n "$work" ] || exit "$status"
  if [ -n "${KEEP-}" ]; then
    say "kept $work"
  else
    rm -rf --one-file-system "$work"
  fi
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[ "$(id -u)" = 0 ] || fail "needs root"
for tool in buildah debootstrap curl unshare; do
  command -v "$tool" >/dev/null && continue
  say "installing buildah and debootstrap"
  apt-get update --quiet=2
  apt-get install --quiet=2 --yes --no-install-recommends \
    buildah debootstrap debian-archive-keyring curl util-linux
  break
done
work=$(mktemp -d "${TMPDIR:-/tmp}/image-test.XXXXXX")
chmod 755 "$work"
mkdir -p "$BUILD" "$work/wheels" "$work/models" "$work/empty" "$work/source"

# --- the base image -------------------------------------------------------------------------------

if [ -n "${MIRROR-}" ]; then
  echo "deb $MIRROR bookworm main"
else
  # What apt on this machine has: the archive itself, its updates and security updates.
  # shellcheck disable=SC2016 # fields for apt
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' \
    'Created-By: Packages' 'Origin: Debian' \
    | awk '$2 ~ /^bookworm/ && $3 == "main" { print "deb", $1, $2, $3 }' | sort -u
fi >"$work/sources.list"
mirror=$(awk '$3 == "bookworm" { print $2; exit }' "$work/sources.list")
[ -n "$mirror" ] || fail "apt on this machine has no source for Debian bookworm; set MIRROR"
apt-config dump | grep -E '^Acquire::(http|https|Check)' >"$work/apt.conf" || true

if [ ! -s "$BASE_TAR" ]; then
  say "debootstrap: Debian bookworm, minbase"
  timeout --foreground "$STEP_S" debootstrap --variant=minbase bookworm "$work/base" "$mirror" \
    >"$work/debootstrap.log" 2>&1 || fail "debootstrap"
  # No trace of how it was made; the build below brings its own list.
  : >"$work/base/etc/apt/sources.list"
  touch "$work/base/etc/apt/apt.conf.d/99machine" # mount point
  rm -rf "$work"/base/var/{log,cache/apt,lib/apt/lists}/*
  : >"$work/base/etc/resolv.conf"
  : >"$work/base/etc/hostname"
  tar --create --numeric-owner --one-file-system --directory "$work/base" \
    --exclude './dev/*' --file "$BASE_TAR.part" .
  mv "$BASE_TAR.part" "$BASE_TAR"
  rm -rf --one-file-system "$work/base"
fi
base=$(buildah_ from scratch)
buildah_ add --quiet "$base" "$BASE_TAR" / >/dev/null
buildah_ config --cmd bash "$base"
buildah_ commit --quiet --rm "$base" docker.io/library/debian:bookworm-slim >/dev/null

# --- the image ------------------------------------------------------------------------------------

say "fetching the wheels with this machine's pip settings"
"$PYTHON" - >"$work/requirements.txt" <<'EOF'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
print(*project["build-system"]["requires"], *project["project"]["dependencies"], sep="\n")
EOF
# For the Python of the image, whichever runs here.
timeout --foreground "$STEP_S" "$PYTHON" -m pip download --quiet --disable-pip-version-check \
  --only-binary :all: --implementation cp --python-version 3.11 \
  --platform manylinux_2_36_x86_64 --platform manylinux_2_28_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
  --platform manylinux_2_12_x86_64 --platform manylinux2010_x86_64 \
  --platform manylinux_2_5_x86_64 --platform manylinux1_x86_64 \
  --requirement "$work/requirements.txt" --dest "$work/wheels" >"$work/pip.log" 2>&1 \
  || fail "pip download"
printf '[global]\nno-index = true\nfind-links = /mnt\n' >"$work/pip.conf"

say "building"
begin=$SECONDS
# Mounted on what the base has already, so that not even a mount point stays behind.
buildah_ build --file docker/Dockerfile --tag "$IMAGE" --format docker --pull-never --no-cache \
  --secret id=pip.conf,src="$work/pip.conf" \
  --volume "$work/wheels:/mnt:ro" \
  --volume "$work/sources.list:/etc/apt/sources.list:ro" \
  --volume "$work/apt.conf:/etc/apt/apt.conf.d/99machine:ro" . \
  >"$work/build.log" 2>&1 || fail "the image does not build"
say "built in $((SECONDS - begin)) s"

container=$(buildah_ from --pull-never "$IMAGE")
root=$(buildah_ mount "$container")
config() { buildah_ inspect --type image --format "$1" "$IMAGE"; }
entrypoint=$(config '{{index .Docker.Config.Entrypoint 0}}')
[ "$(config '{{.Docker.Config.StopSignal}}')" = SIGTERM ] || fail "no STOPSIGNAL SIGTERM"
[[ $(config '{{.Docker.Config.ExposedPorts}}') == *8080/tcp* ]] || fail "no EXPOSE 8080"
[[ $(config '{{.Docker.Config.User}}') =~ ^[1-9][0-9]{4,}: ]] || fail "USER is not a high number"

# --- nothing of this machine in any layer ---------------------------------------------------------

say "searching the layers for settings of this machine"
buildah_ push --quiet --disable-compression "$IMAGE" "dir:$work/layers" >/dev/null
# The public index, as pip knows it: packages name it in their own metadata.
public=$("$PYTHON" -c 'from pip._internal.models.index import PyPI as p
print(p.netloc, p.file_storage_domain, sep="\n")')
{
  # Hosts and folders of indexes, mirrors and proxies.
  {
    "$PYTHON" -m pip config list
    env | grep -iE '^(https?|all)_proxy=' || true
    cat "$work/sources.list" "$work/apt.conf"
  } | grep -oE "(https?|file)://[^'\" ,;]+|[=' ]'?/[^' ,]+" \
    | sed -E "s#^[=' ]+##; s#^https?://([^@/]*@)?([^/:]+).*#\2#; s#^file://##" || true
  echo "$work"
  pwd
} | sort -u \
  | grep -E '^[^/]|^/[^/]+/.' \
  | grep -vxE 'localhost|127\.0\.0\.1|.*\.debian\.org|/etc/ssl/.*' \
  | grep -vxF "$public" >"$work/private"
grep --text --recursive --only-matching --fixed-strings --file "$work/private" "$work/layers" \
  | sort | uniq -c >"$work/leaks.log" || true
[ ! -s "$work/leaks.log" ] || fail "a layer names an index, a mirror or a folder of this machine"
for blob in "$work"/layers/*; do
  tar --list --file "$blob" 2>/dev/null || true # the configuration is no tar
done | sed 's#^#/#' | grep --fixed-strings --file "$work/private" >"$work/leaks.log" || true
[ ! -s "$work/leaks.log" ] || fail "a layer holds a folder of this machine"
[ -z "$(ls -A "$root/mnt")" ] || fail "wheels stayed in the image"
[ ! -e "$root/run/secrets" ] || fail "/run/secrets stayed in the image"
for package in "$root"/opt/venv/lib/python3*/site-packages/{pip,setuptools}; do
  [ ! -e "$package" ] || fail "${package##*/} stayed in the image"
done

# --- running it -----------------------------------------------------------------------------------

# The image exports the model itself: its other command works, and the package is complete.
cat >"$work/source/service.py" <<'EOF'
import time

from mms.model_service.model_service import SingleNodeService


class Echo(SingleNodeService):
    def _inference(self, data):
        if data[0] == ["slow"]:
            time.sleep(2)
        return data

    def _postprocess(self, data):
        return data[0]
EOF
cat >"$work/source/signature.json" <<'EOF'
{
  "inputs": [{"data_name": "data", "data_shape": [0]}], "input_type": "application/json",
  "outputs": [{"data_name": "output", "data_shape": [0]}], "output_type": "application/json"
}
EOF
echo '["sample"]' >"$work/source/sample.json"
chmod 777 "$work/models"
say "exporting a model with the image's mxnet-model-export"
buildah_ run --volume "$work/source:/source:ro" --volume "$work/models:/models" "$container" -- \
  mxnet-model-export --model-name echo --model-path /source \
  --service-file-path /source/service.py --export-path /models --check \
  >"$work/export.log" 2>&1 || fail "mxnet-model-export in the image"
chmod 755 "$work/models"

free_port() {
  "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

# Wait until the server started as process $1 is healthy; sets `server`, its process id.
await_server() {
  local deadline=$((SECONDS + START_S)) pid command
  until curl --silent --fail --max-time 2 --noproxy '*' --output /dev/null "$url/ping"; do
    kill -0 "$1" 2>/dev/null || fail "the container ended"
    [ $SECONDS -lt $deadline ] || fail "not healthy after $START_S s"
    sleep 0.1
  done
  for pid in $(descendants "$1"); do
    # The first from the top; its workers come below it.
    command=$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") || continue
    if [[ $command == /opt/venv/bin/python*mxnet-model-server* ]]; then
      server=$pid
      return
    fi
  done
  fail "no server among the container's processes"
}

ask() { curl --silent --show-error --fail --max-time 20 --noproxy '*' "$@"; }
predict() {
  local answer
  answer=$(ask --header 'content-type: application/json' --data "$1" "$url/predictions/echo") \
    || fail "no prediction"
  [ "$answer" = "$1" ] || fail "prediction: expected $1, got $answer"
}

# SIGTERM with a request in flight: it is answered, and the process $1 exits 0.
check_drain() {
  local status=0 request begin
  ask --header 'content-type: application/json' --data '["slow"]' "$url/predictions/echo" \
    >"$work/drained" &
  request=$!
  started+=("$request")
  until grep -qE '^mms_in_flight\{.*\} 1(\.0)?$' <<<"$(ask "$url/metrics")"; do
    kill -0 "$request" 2>/dev/null || fail "the slow request was never in flight"
    sleep 0.05
  done
  begin=$SECONDS
  kill -TERM "$server"
  wait "$request" || fail "the request in flight was dropped"
  [ "$(cat "$work/drained")" = '["slow"]' ] || fail "wrong answer while draining"
  while kill -0 "$1" 2>/dev/null; do
    [ $((SECONDS - begin)) -lt $STOP_S ] || fail "still running $STOP_S s after SIGTERM"
    sleep 0.1
  done
  wait "$1" || status=$?
  [ "$status" = 0 ] || fail "exit status $status after SIGTERM"
  started=()
}

say "running it as the image says"
port=$(free_port)
url=http://127.0.0.1:$port
buildah_ run --env MMS_PORT="$port" --volume "$work/models:/models:ro" "$container" -- \
  "$entrypoint" >"$work/run.log" 2>&1 &
run=$!
started+=("$run")
await_server "$run"
[ "$(awk '/^Uid:/ { print $2 }' "/proc/$server/status")" = 10001 ] || fail "not the image's uid"
predict '["hello",1]'
grep -q '^mms_requests_total' <<<"$(ask "$url/metrics")" || fail "no mms_requests_total in /metrics"
config '{{range .Docker.Config.Healthcheck.Test}}{{println .}}{{end}}' | grep . >"$work/check"
mapfile -t check <"$work/check"
[ "${check[0]}" = CMD ] || fail "HEALTHCHECK is ${check[*]}"
buildah_ run --env MMS_PORT="$port" "$container" -- "${check[@]:1}" >"$work/health.log" 2>&1 \
  || fail "the health check fails on a healthy server"
check_drain "$run"
if buildah_ run --env MMS_PORT="$port" "$container" -- "${check[@]:1}" >/dev/null 2>&1; then
  fail "the health check passes without a server"
fi

say "running it as process 1, as any uid, on a read-only root"
port=$(free_port)
url=http://127.0.0.1:$port
config '{{range .Docker.Config.Env}}{{println .}}{{end}}' | grep . >"$work/environment"
mapfile -t environment <"$work/environment"
mkdir -p "$root/models"
# shellcheck disable=SC2016 # expanded by the inner shell
unshare --mount --pid --fork --kill-child sh -euc '
  root=$1 models=$2
  shift 2
  mount --bind "$root" "$root"
  mount --bind "$models" "$root/models"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
  mount -t proc proc "$root/proc"
  mount -o remount,ro,bind "$root"
  mount -o remount,ro,bind "$root/models"
  exec chroot --userspec=123456:0 "$root" env -i "$@"
' sh "$root" "$work/models" "${environment[@]}" MMS_PORT="$port" "$entrypoint" \
  >"$work/readonly.log" 2>&1 &
run=$!
started+=("$run")
await_server "$run"
[ "$(awk '/^NSpid:/ { print $NF }' "/proc/$server/status")" = 1 ] || fail "not process 1"
[ "$(awk '/^Uid:/ { print $2 }' "/proc/$server/status")" = 123456 ] || fail "not uid 123456"
predict '["read-only"]'
check_drain "$run"
rmdir "$root/models"

# --- what it says when there is nothing to serve --------------------------------------------------

refuse() {
  local expected=$1 output status=0
  shift
  output=$(buildah_ run "$@" "$container" -- "$entrypoint" 2>&1) || status=$?
  [ "$status" != 0 ] || fail "exit status 0 with nothing to serve"
  grep -q "$expected" <<<"$output" || fail "expected '$expected', got: $output"
}
say "running it with nothing to serve"
refuse "nothing is mounted at /models"
refuse "no .model file in the folder mounted at /models" --volume "$work/empty:/models:ro"
chmod 700 "$work/empty"
refuse "uid 10001 may not read" --volume "$work/empty:/models:ro"
version=$(buildah_ run "$container" -- "$entrypoint" --version)

megabytes() { du -sm "$1" | cut -f1; }
say "size: $(megabytes "$root") MB, $(megabytes "$root/opt/venv") MB of it Python packages" \
  "and $(megabytes "$BASE_TAR") MB the base"
say "$version: passed in $SECONDS s"
