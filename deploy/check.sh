#!/bin/sh
# Checks everything in deploy/ that can be checked without a container engine and
# without a cluster: shell scripts, container file, Kubernetes manifest.
#
#     deploy/check.sh [BINARY]
#
# With BINARY, a built codex-sidecar, also that it takes the manifest's environment,
# configuration and probe commands; that it runs where image and manifest put it; and,
# if it is one of deploy/release.sh, that its SBOM says what is in it. The tools come from
# PyPI, into target/, once. What this machine can't do is said: "left out: ...".
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
repository=$(CDPATH='' cd -- "$here/.." && pwd -P)
cd "$repository"

fail() {
    echo "check.sh: $*" >&2
    exit 1
}

python=$(python3 tests/python/venv.py target/deploy-venv deploy/requirements.txt)
tools=$(dirname "$python")

"$tools/shellcheck" deploy/*.sh tests/python/*.sh .ci/run
echo "shell scripts: shellcheck has nothing to say"

"$tools/hadolint" --failure-threshold style deploy/Containerfile
# A linter that is broken has nothing to say either: show it what it must not like.
if printf 'FROM debian\nRUN cd /tmp\n' | "$tools/hadolint" --failure-threshold style - >/dev/null; then
    fail "hadolint took a container file that it must refuse"
fi

# The same version in two places each, because neither file can read the other.
# Prints what VERSION_PATTERN's group matches in FILE.
version_in() { sed -n "s/$2/\1/p" "$1" | head -n 1; }
same() {
    if [ -z "$2" ] || [ "$2" != "$3" ]; then
        fail "$1: '$2' in one file, '$3' in the other"
    fi
}
same "version of Codex (install-codex.sh, Containerfile)" \
    "$(version_in deploy/install-codex.sh '^PINNED_VERSION=\(.*\)$')" \
    "$(version_in deploy/Containerfile '^ARG CODEX_VERSION=\(.*\)$')"
same "version of the sidecar (Cargo.toml, kubernetes.yaml)" \
    "$(version_in Cargo.toml '^version = "\(.*\)"$')" \
    "$(version_in deploy/kubernetes.yaml '^ *image: codex-sidecar:\(.*\)$')"

# What the container file copies is there, is let through by its ignore file, and is
# enough for cargo to know every target that Cargo.toml names.
staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT
sed -n '/^COPY --from/d; s/^COPY \(.*\) [^ ]*$/\1/p' deploy/Containerfile | tr ' ' '\n' >"$staging/copied"
while read -r source; do
    [ -e "$source" ] || fail "the container file copies $source, which is not there"
    grep -qxF "!$source" deploy/Containerfile.dockerignore ||
        fail "the container file copies $source, which Containerfile.dockerignore keeps out"
    cp -R "$source" "$staging/"
done <"$staging/copied"
cargo metadata --manifest-path "$staging/Cargo.toml" --locked --no-deps --format-version 1 >/dev/null ||
    fail "what the container file copies does not make a crate"
echo "Containerfile: hadolint has nothing to say, versions agree, all that it copies is there"

"$python" -B deploy/check_manifest.py deploy/kubernetes.yaml "$@"
"$python" -B deploy/check_containerfile.py
if [ $# -gt 0 ]; then
    "$python" -B deploy/check_container.py "$1"
    if [ -f "$1.cdx.json" ]; then
        "$python" -B deploy/check_sbom.py "$1" "$1.cdx.json"
    else
        echo "left out: the SBOM: $1 is not one of deploy/release.sh"
    fi
fi
