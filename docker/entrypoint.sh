#!/bin/sh
# Without arguments, serve every archive in /models under its file's name; otherwise hand the
# arguments to mxnet-model-server. The server replaces this shell and gets the signals itself.
set -eu
models=/models

if [ $# -gt 0 ] || [ -n "${MMS_CONFIG-}" ]; then
  exec mxnet-model-server "$@"
fi

fail() {
  echo "Error: $1" >&2
  echo "Mount a folder with .model files: docker run -v \"\$PWD/models:$models:ro\" ..." >&2
  exit 1
}

[ -d "$models" ] || fail "no model to serve: nothing is mounted at $models"
if [ ! -r "$models" ] || [ ! -x "$models" ]; then
  fail "no model to serve: uid $(id -u) may not read the folder mounted at $models"
fi
for archive in "$models"/*.model; do
  [ -e "$archive" ] || continue # without a match, the pattern itself
  name=${archive##*/}
  set -- "$@" --models "${name%.model}=$archive"
done
[ $# -gt 0 ] || fail "no model to serve: no .model file in the folder mounted at $models"
exec mxnet-model-server "$@"
