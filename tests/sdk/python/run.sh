#!/bin/sh
# Runs openai-agents' same-thread flow against a sidecar that is up, with the drop-in as
# its Codex CLI:
#
#     CODEX_PATH=target/debug/codex-sidecar CODEX_SIDECAR_ADDR=127.0.0.1:50061 tests/sdk/python/run.sh
#
# The sidecar must be one with the offline model, whose answers the test knows. The
# environment is made in target/sdk-python-venv, once.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
repository=$(CDPATH='' cd -- "$here/../../.." && pwd -P)

for name in CODEX_PATH CODEX_SIDECAR_ADDR; do
    eval "value=\${$name:-}"
    if [ -z "$value" ]; then
        echo "run.sh: $name must be set" >&2
        exit 64
    fi
done
python=$(python3 "$repository/tests/python/venv.py" "$repository/target/sdk-python-venv" "$here/requirements.txt")
# Everything is on this machine: a proxy that the environment names has no part in it.
unset http_proxy https_proxy grpc_proxy HTTP_PROXY HTTPS_PROXY GRPC_PROXY all_proxy ALL_PROXY
# -B: no __pycache__ beside the sources.
exec "$python" -B "$here/test_same_thread.py" "$@"
