#!/bin/sh
# Installs one version of the Codex CLI from npm and prints where its native
# binary is.
#
#     deploy/install-codex.sh [VERSION]
#
# stdout  one line: the absolute path of the native binary. Nothing else, ever,
#         so that `codex=$(deploy/install-codex.sh)` is safe.
# stderr  progress, npm's own words, errors.
# status  0 installed (or already there); 64 bad usage; 69 npm is missing, the
#         platform has no binary, or the lock stayed taken; 1 everything else.
#
# CODEX_INSTALL_DIR  the directory that holds one directory per version;
#                    default: target/codex of this repository.
#
# The native binary, not npm's `codex` wrapper: the wrapper is a node process
# more per worker, and a signal sent to it need not reach Codex.
#
# Callable by any number of processes at once: each installs into a directory of
# its own and the finished one is renamed into place, so nobody ever sees half an
# installation. The lock only saves the second download.
set -eu

# The version that the sidecar is developed and tested against. The container
# file repeats it; deploy/check.sh fails when they differ.
PINNED_VERSION=0.169.0
# Longer than a slow first download (about 130 MB), shorter than a person's
# patience with a script that says nothing.
LOCK_WAIT_SECONDS=600

say() { printf 'install-codex: %s\n' "$*" >&2; }
fail() {
    status=$1
    shift
    say "$*"
    exit "$status"
}

if [ $# -gt 1 ]; then
    fail 64 "usage: install-codex.sh [VERSION]"
fi
version=${1:-$PINNED_VERSION}
# An exact version only: a tag such as `latest` would name a directory whose
# content depends on the day it was made. It also keeps `..` and `/` out of paths.
case $version in
    *[!0-9A-Za-z.-]* | .* | -* | *..*) fail 64 "not an exact version: '$version' (wanted: like $PINNED_VERSION)" ;;
    [0-9]*.[0-9]*.[0-9]*) ;;
    *) fail 64 "not an exact version: '$version' (wanted: like $PINNED_VERSION)" ;;
esac

# npm's names for this machine, and the directory name inside the package. The
# Linux builds are static (musl), so they run on every distribution.
machine="$(uname -s) $(uname -m)"
case $machine in
    "Linux x86_64" | "Linux amd64")   npm_os=linux  npm_cpu=x64   triple=x86_64-unknown-linux-musl ;;
    "Linux aarch64" | "Linux arm64")  npm_os=linux  npm_cpu=arm64 triple=aarch64-unknown-linux-musl ;;
    "Darwin x86_64")                  npm_os=darwin npm_cpu=x64   triple=x86_64-apple-darwin ;;
    "Darwin arm64")                   npm_os=darwin npm_cpu=arm64 triple=aarch64-apple-darwin ;;
    *) fail 69 "there is no Codex binary for $machine (Linux and macOS, x64 and arm64, have one)" ;;
esac

if [ -n "${CODEX_INSTALL_DIR:-}" ]; then
    root=$CODEX_INSTALL_DIR
    case $root in
        /*) ;;
        *) root=$(pwd -P)/$root ;;
    esac
else
    root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)/target/codex
fi
destination=$root/$version

# Sets `binary` to the one under $1, or fails. Two places in the tree (a package
# of its own per platform, or inside the main package), two names in it (`bin/`,
# up to about 0.130 `codex/`).
find_binary() {
    for package in "codex-$npm_os-$npm_cpu" codex; do
        for name in bin codex; do
            binary=$1/node_modules/@openai/$package/vendor/$triple/$name/codex
            if [ -f "$binary" ] && [ -x "$binary" ]; then
                return 0
            fi
        done
    done
    return 1
}

# The quick path, before any lock and without npm: it works in a read-only tree
# and on a machine that has no node.
if find_binary "$destination"; then
    printf '%s\n' "$binary"
    exit 0
fi

command -v npm >/dev/null 2>&1 ||
    fail 69 "npm is not on PATH: install Node.js (16 or newer, with npm), or point CODEX_PATH at a Codex binary that is already there"

mkdir -p "$root"
staging=
lock_directory=
clean_up() {
    if [ -n "$staging" ]; then rm -rf "$staging"; fi
    if [ -n "$lock_directory" ]; then rm -rf "$lock_directory"; fi
}
trap clean_up EXIT
# Through exit, so that the trap above runs; without these two, some shells skip
# the EXIT trap when a signal ends them.
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if command -v flock >/dev/null 2>&1; then
    # The kernel lets go of it however the holder dies.
    exec 9>"$root/.lock"
    if ! flock -n 9; then
        say "waiting for another installation in $root"
        flock -w "$LOCK_WAIT_SECONDS" 9 ||
            fail 69 "another process has held $root/.lock for $LOCK_WAIT_SECONDS s"
    fi
else
    # macOS has no flock: a directory with the holder's process id in it.
    waited=0
    until mkdir "$root/.lock.d" 2>/dev/null; do
        holder=$(cat "$root/.lock.d/pid" 2>/dev/null || true)
        if [ -n "$holder" ] && ! kill -0 "$holder" 2>/dev/null; then
            # Its holder was killed. Renamed away before it is deleted, so that of
            # two waiters only one takes it away, and never the other's new lock.
            if mv "$root/.lock.d" "$root/.lock.dead.$$" 2>/dev/null; then
                rm -rf "$root/.lock.dead.$$"
            fi
            continue
        fi
        if [ "$waited" -eq 0 ]; then say "waiting for another installation in $root"; fi
        if [ "$waited" -ge "$LOCK_WAIT_SECONDS" ]; then
            fail 69 "another process has held $root/.lock.d for $LOCK_WAIT_SECONDS s; if none is running, delete it"
        fi
        sleep 1
        waited=$((waited + 1))
    done
    lock_directory=$root/.lock.d
    echo $$ >"$lock_directory/pid"
fi

# Whoever held the lock may just have installed it.
if find_binary "$destination"; then
    printf '%s\n' "$binary"
    exit 0
fi

# What a killed installation left: 400 MB that nobody else would ever delete. Only
# those whose process is gone: should the lock ever fail us, another process's
# work is still not ours to delete.
for abandoned in "$root"/.staging.*; do
    if [ -d "$abandoned" ] && ! kill -0 "${abandoned##*.}" 2>/dev/null; then
        rm -rf "$abandoned"
    fi
done
staging=$root/.staging.$version.$$
mkdir "$staging"

say "installing @openai/codex@$version ($npm_os $npm_cpu) through npm"
# --os and --cpu: npm goes by node's own architecture, which is another one than
# the kernel's under emulation. --include=optional: the binary is an optional
# dependency, and a user's npmrc may omit those. --ignore-scripts: nothing here
# needs one. Standard input closed, so that npm never asks; descriptor 9 closed, so
# that a child which outlives us doesn't hold the lock.
npm install --prefix "$staging" --global=false --os="$npm_os" --cpu="$npm_cpu" \
    --include=optional --ignore-scripts --no-audit --no-fund --no-update-notifier \
    --loglevel=error "@openai/codex@$version" \
    </dev/null >"$staging/npm.log" 2>&1 9>&- || {
    cat "$staging/npm.log" >&2
    if grep -Eq 'ETARGET|E404|No matching version' "$staging/npm.log"; then
        fail 1 "the registry has no @openai/codex@$version"
    fi
    fail 1 "npm could not install @openai/codex@$version (its message is above)"
}

if ! find_binary "$staging"; then
    # npm says nothing when an optional dependency does not arrive.
    cat "$staging/npm.log" >&2
    fail 69 "@openai/codex@$version brought no binary for $npm_os $npm_cpu ($triple)"
fi
# Once, here, where the reason can still be told: a binary that does not start
# would otherwise show as a worker that dies at its handshake.
"$binary" --version </dev/null >"$staging/version.log" 2>&1 9>&- ||
    fail 69 "the binary of @openai/codex@$version does not run on this machine: $(head -n 3 "$staging/version.log")"
say "installed: $(tail -n 1 "$staging/version.log")"
rm -f "$staging/npm.log" "$staging/version.log"

# What is there without a binary is of another platform (a tree shared with a
# container, say) or broken; `mv` would move into it instead of replacing it.
if [ -e "$destination" ]; then rm -rf "$destination"; fi
mv "$staging" "$destination"
staging=

find_binary "$destination" || fail 1 "$destination has changed under our hands"
printf '%s\n' "$binary"
