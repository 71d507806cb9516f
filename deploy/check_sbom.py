"""Checks that an SBOM says what is in a binary: no package less, none more.

    check_sbom.py BINARY SBOM

Two tools made the two lists: `cargo auditable` the one in the binary, from what was really
compiled, cargo-cyclonedx the SBOM. Cargo.lock has the checksums. Like check_manifest.py, it
is first shown SBOMs with one thing wrong, and must complain.
"""

import copy
import json
import pathlib
import sys
import tomllib
import zlib

from elftools.elf.elffile import ELFFile


def packages_in(binary: str) -> set:
    """Name and version of all that went into a binary, as `cargo auditable` wrote it there."""
    with open(binary, "rb") as file:
        section = ELFFile(file).get_section_by_name(".dep-v0")
        if section is None:
            sys.exit(f"{binary} has no list of its packages: build it with deploy/release.sh")
        listed = json.loads(zlib.decompress(section.data()))
    # The root is the binary itself, and the SBOM's subject.
    return {(package["name"], package["version"]) for package in listed["packages"] if not package.get("root")}


def faults(packages: set, locked: dict, sbom: dict) -> list:
    found = []
    components = {(component["name"], component["version"]): component for component in sbom["components"]}
    found += [f"{name} {version} is in the binary, and not in the SBOM" for name, version in packages - components.keys()]
    found += [f"{name} {version} is in the SBOM, and not in the binary" for name, version in components.keys() - packages]
    for package, component in components.items():
        name, version = package
        hashes = {it["content"] for it in component.get("hashes", []) if it["alg"] == "SHA-256"}
        if hashes != {locked.get(package)}:
            found.append(f"{name} {version}: Cargo.lock has another checksum")
        if not component.get("licenses"):
            found.append(f"{name} {version} has no licence")
        if component.get("purl") != f"pkg:cargo/{name}@{version}":
            found.append(f"{name} {version} has no package URL")
    dependencies = {entry["ref"] for entry in sbom["dependencies"]}
    found += [f"{it['name']}: not said what it depends on" for it in sbom["components"] if it["bom-ref"] not in dependencies]
    return found


def mutants(sbom: dict):
    """SBOMs with one thing wrong."""

    def mutant(what, change):
        changed = copy.deepcopy(sbom)
        change(changed)
        return what, changed

    yield mutant("a package left out", lambda it: it["components"].pop())
    yield mutant("a package of another version", lambda it: it["components"][0].update(version="0.0.0"))
    yield mutant("another checksum", lambda it: it["components"][0]["hashes"][0].update(content="00"))
    yield mutant("no licence", lambda it: it["components"][0].pop("licenses"))
    yield mutant("no package URL", lambda it: it["components"][0].pop("purl"))
    yield mutant("no dependencies", lambda it: it["dependencies"].pop())


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: check_sbom.py BINARY SBOM")
    lock = pathlib.Path(__file__).resolve().parent.parent / "Cargo.lock"
    locked = {
        (package["name"], package["version"]): package.get("checksum")
        for package in tomllib.loads(lock.read_text(encoding="utf-8"))["package"]
    }
    packages = packages_in(sys.argv[1])
    sbom = json.loads(pathlib.Path(sys.argv[2]).read_text(encoding="utf-8"))
    found = faults(packages, locked, sbom)
    for fault in found:
        print(f"SBOM: {fault}", file=sys.stderr)
    missed = [what for what, mutant in mutants(sbom) if not faults(packages, locked, mutant)]
    for what in missed:
        print(f"check_sbom.py: this was not noticed: {what}", file=sys.stderr)
    if found or missed:
        sys.exit(1)
    print(f"SBOM: all {len(packages)} packages of the binary and no other; every planted fault was noticed")


if __name__ == "__main__":
    main()
