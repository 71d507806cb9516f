#!/bin/sh
# Installs the MCP project's own reference server in target/mcp-servers, once, and prints the path of its
# program for Node.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
repository=$(CDPATH='' cd -- "$here/../.." && pwd -P)
directory=$repository/target/mcp-servers

if ! cmp -s "$here/package-lock.json" "$directory/node_modules/.installed"; then
    rm -rf "$directory"
    mkdir -p "$directory"
    cp "$here/package.json" "$here/package-lock.json" "$directory/"
    npm ci --prefix "$directory" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
    # Last: a directory without it is one that an install was cut off in.
    cp "$here/package-lock.json" "$directory/node_modules/.installed"
fi
echo "$directory/node_modules/@modelcontextprotocol/server-everything/dist/index.js"
