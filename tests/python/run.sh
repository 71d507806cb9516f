#!/bin/sh
# Runs the tests in Python against a sidecar that is up:
#
#     CODEX_SIDECAR_ADDR=127.0.0.1:50061 CODEX_SIDECAR_SOCKET=/run/sidecar.sock tests/python/run.sh
#
# The sidecar must be one with the offline model, whose answers the tests know. Without
# CODEX_SIDECAR_SOCKET, where it must listen too, the tests of Unix sockets are left out, and without the
# MCP server `desk` (tests/mcp/desk.py) in the config.toml of its CODEX_HOME those of elicitations.
# The environment is made in target/python-venv, once; the second run starts at once.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
repository=$(CDPATH='' cd -- "$here/../.." && pwd -P)

if [ -z "${CODEX_SIDECAR_ADDR:-}" ]; then
    echo "run.sh: CODEX_SIDECAR_ADDR must say where the sidecar is (HOST:PORT)" >&2
    exit 64
fi
command -v python3 >/dev/null 2>&1 || {
    echo "run.sh: python3 is not on PATH" >&2
    exit 69
}

python=$(python3 "$here/venv.py" "$repository/target/python-venv" "$here/requirements.txt")
# Everything is on this machine: a proxy that the environment names has no part in it.
unset http_proxy https_proxy grpc_proxy HTTP_PROXY HTTPS_PROXY GRPC_PROXY all_proxy ALL_PROXY
# -B: no __pycache__ beside the sources.
exec "$python" -B -m unittest discover --verbose --start-directory "$here" "$@"
