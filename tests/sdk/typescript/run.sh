#!/bin/sh
# Runs @openai/codex-sdk against a sidecar that is up, with the drop-in as its Codex CLI:
#
#     CODEX_SIDECAR=$PWD/target/debug/codex-sidecar CODEX_SIDECAR_ADDR=127.0.0.1:50061 tests/sdk/typescript/run.sh
#
# The sidecar must be one with the offline model, whose answers the test knows. The SDK is
# installed in target/sdk-typescript, once, without the CLI that it would bring along.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
repository=$(CDPATH='' cd -- "$here/../../.." && pwd -P)
directory=$repository/target/sdk-typescript

for name in CODEX_SIDECAR CODEX_SIDECAR_ADDR; do
    eval "value=\${$name:-}"
    if [ -z "$value" ]; then
        echo "run.sh: $name must be set" >&2
        exit 64
    fi
done
if ! cmp -s "$here/package-lock.json" "$directory/node_modules/.installed"; then
    rm -rf "$directory"
    mkdir -p "$directory"
    cp "$here/package.json" "$here/package-lock.json" "$directory/"
    npm ci --prefix "$directory" --omit=optional --ignore-scripts --no-audit --no-fund --loglevel=error >&2
    # Last: a directory without it is one that an install was cut off in.
    cp "$here/package-lock.json" "$directory/node_modules/.installed"
fi
# Everything is on this machine: a proxy that the environment names has no part in it.
unset http_proxy https_proxy grpc_proxy HTTP_PROXY HTTPS_PROXY GRPC_PROXY all_proxy ALL_PROXY
# Node looks for packages beside the file that imports them.
cp "$here/test.mjs" "$directory/test.mjs"
cd "$directory"
exec node test.mjs "$@"
