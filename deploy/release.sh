#!/bin/sh
# Builds the binary that is released, and writes down what is in it.
#
#     deploy/release.sh [--profile PROFILE] DIRECTORY
#
# DIRECTORY gets
#   codex-sidecar           the binary, with the list of its packages in it (cargo auditable): a
#                           scanner of images or machines reads it there.
#   codex-sidecar.debug     its debug information.
#   codex-sidecar.cdx.json  the same list as an SBOM (CycloneDX 1.5): licences, checksums, and who
#                           depends on whom. What only the build needs has the scope "excluded".
#   THIRD-PARTY-LICENSES    the licence texts that come with those packages.
#   SHA256SUMS              of these.
# PROFILE is cargo's; default: release. On Linux, with binutils. The other tools come from
# crates.io, into target/tools, once.
#
# deploy/check_sbom.py holds the SBOM to the binary.
set -eu

CARGO_AUDITABLE_VERSION=0.7.7
CARGO_CYCLONEDX_VERSION=0.5.9

usage() {
    echo "usage: release.sh [--profile PROFILE] DIRECTORY" >&2
    exit 64
}

profile=release
if [ "${1:-}" = --profile ]; then
    [ $# -ge 2 ] || usage
    profile=$2
    shift 2
fi
[ $# -eq 1 ] || usage
mkdir -p "$1"
out=$(CDPATH='' cd -- "$1" && pwd -P)
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}

# Sets `tool` to cargo's subcommand $1 in version $2. Unoptimised: it runs for a second.
install_tool() {
    tool=$PWD/target/tools/$1-$2/bin/$1
    [ -x "$tool" ] ||
        cargo install --quiet --locked --debug --root "target/tools/$1-$2" --version "$2" "$1" >&2
}

install_tool cargo-auditable "$CARGO_AUDITABLE_VERSION"
"$tool" auditable build --locked --profile "$profile" --bin codex-sidecar
case $profile in
    dev | test) built=$target/debug ;;
    bench) built=$target/release ;;
    *) built=$target/$profile ;;
esac
# Four fifths of it are the lines of the source. They lie beside it, where a debugger looks for
# them; the names of functions stay.
objcopy --only-keep-debug "$built/codex-sidecar" "$out/codex-sidecar.debug"
objcopy --strip-debug --add-gnu-debuglink="$out/codex-sidecar.debug" "$built/codex-sidecar" "$out/codex-sidecar"

install_tool cargo-cyclonedx "$CARGO_CYCLONEDX_VERSION"
# It writes beside Cargo.toml, whatever it is told.
trap 'rm -f codex-sidecar_bin.cdx.json' EXIT
"$tool" cyclonedx --quiet --format json --spec-version 1.5 --describe binaries
mv codex-sidecar_bin.cdx.json "$out/codex-sidecar.cdx.json"

sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
cargo tree --locked --edges normal,build --prefix none --format '{p}' | sort -u |
    while read -r name version _; do
        for text in "$sources"/*/"$name-${version#v}"/LICEN[CS]E* "$sources"/*/"$name-${version#v}"/NOTICE*; do
            [ ! -f "$text" ] || printf '==== %s %s: %s\n\n%s\n\n' "$name" "$version" "${text##*/}" "$(cat "$text")"
        done
    done >"$out/THIRD-PARTY-LICENSES"

cd "$out"
sha256sum codex-sidecar codex-sidecar.debug codex-sidecar.cdx.json THIRD-PARTY-LICENSES >SHA256SUMS
