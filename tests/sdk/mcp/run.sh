#!/bin/sh
# Runs the MCP server's tests, with the client of the `mcp` package, against a sidecar
# that is up:
#
#     CODEX_SIDECAR=target/debug/codex-sidecar CODEX_SIDECAR_ADDR=127.0.0.1:50061 tests/sdk/mcp/run.sh
#
# The sidecar must be one with the offline model, whose answers the tests know. The
# environment is that of tests/sdk/python, which has the package, too.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
repository=$(CDPATH='' cd -- "$here/../../.." && pwd -P)

for name in CODEX_SIDECAR CODEX_SIDECAR_ADDR; do
    eval "value=\${$name:-}"
    if [ -z "$value" ]; then
        echo "run.sh: $name must be set" >&2
        exit 64
    fi
done
python=$(python3 "$repository/tests/python/venv.py" "$repository/target/sdk-python-venv" "$repository/tests/sdk/python/requirements.txt")
# Everything is on this machine: a proxy that the environment names has no part in it.
unset http_proxy https_proxy grpc_proxy HTTP_PROXY HTTPS_PROXY GRPC_PROXY all_proxy ALL_PROXY
# -B: no __pycache__ beside the sources.
exec "$python" -B "$here/test_mcp_server.py" "$@"
