"""Checks deploy/Containerfile by the rules below.

    check_containerfile.py

They know what hadolint does not: that the bases are pinned and of one Debian, that nothing is root's
or needs a shell to start, that a read-only root will do, that the labels are true. Like
check_manifest.py, it is first shown container files with one thing wrong, and must complain.
"""

import json
import pathlib
import re
import sys
import tomllib
from dataclasses import dataclass, field

HERE = pathlib.Path(__file__).resolve().parent


@dataclass
class Image:
    """The parts of a container file that the rules and the start speak of: its last stage."""

    bases: list = field(default_factory=list)
    env: dict = field(default_factory=dict)
    labels: dict = field(default_factory=dict)
    # Path to (user, group, mode), of `install --directory`.
    directories: dict = field(default_factory=dict)
    volumes: list = field(default_factory=list)
    user: str = "0:0"
    workdir: str = "/"
    entrypoint: str = ""
    healthcheck: str = ""

    @staticmethod
    def parse(text: str) -> "Image":
        text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
        arguments, image, stages = {}, Image(), set()
        for line in text.splitlines():
            word, _, rest = line.strip().partition(" ")
            rest = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], ""), rest)
            pairs = re.findall(r'([\w.]+)=("[^"]*"|\S*)', rest)
            match word:
                case "ARG":
                    name, _, value = rest.partition("=")
                    arguments.setdefault(name, value)
                case "FROM":
                    base, _, stage = rest.partition(" AS ")
                    image = Image(bases=image.bases if base in stages else [*image.bases, base])
                    stages.add(stage)
                case "ENV":
                    image.env |= {name: value.strip('"') for name, value in pairs}
                case "LABEL":
                    image.labels |= {name: value.strip('"') for name, value in pairs}
                case "RUN":
                    made = r"install --directory --owner=(\d+) --group=(\d+) --mode=(\d+) (\S+)"
                    for uid, gid, mode, path in re.findall(made, rest):
                        image.directories[path] = (int(uid), int(gid), int(mode, 8))
                case "VOLUME":
                    image.volumes = json.loads(rest)
                case "USER":
                    image.user = rest
                case "WORKDIR":
                    image.workdir = rest
                case "ENTRYPOINT":
                    image.entrypoint = rest
                case "HEALTHCHECK":
                    image.healthcheck = rest.partition("CMD ")[2]
        return image


def image_faults(image: Image) -> list:
    faults = []

    def want(holds: bool, fault: str) -> None:
        if not holds:
            faults.append(fault)

    package = tomllib.loads((HERE.parent / "Cargo.toml").read_text(encoding="utf-8"))["package"]
    for base in image.bases:
        want(re.fullmatch(r"[\w.:-]+@sha256:[0-9a-f]{64}", base) is not None, f"{base!r} is not pinned by a digest")
    releases = {release for base in image.bases for release in re.findall("bookworm|trixie|forky", base.partition("@")[0])}
    want(len(releases) == 1, f"the stages are not of one release of Debian: {image.bases}")
    rust = [base for base in image.bases if base.startswith(f"rust:{package['rust-version']}.")]
    want(len(rust) == 1, f"no base is of Rust {package['rust-version']}")
    want(re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.user) is not None, f"USER {image.user}: root, or no number")
    for what, path in (("CODEX_HOME", image.env.get("CODEX_HOME")), ("HOME", image.env.get("HOME")), ("WORKDIR", image.workdir)):
        want(path in image.volumes, f"{what} {path} is on no volume: a read-only root can't be written to")
    for name, words in (("ENTRYPOINT", image.entrypoint), ("HEALTHCHECK", image.healthcheck)):
        want(words.startswith('["'), f"{name} starts a shell: {words}")
    for label, value in (("version", package["version"]), ("licenses", package["license"])):
        want(image.labels.get(f"org.opencontainers.image.{label}") == value, f"the label for {label} is not {value}")
    return faults


def image_mutants(text: str):
    """Container files with one thing wrong."""
    yield "a base without a digest", re.sub("(?m)^(ARG DEBIAN=.*)@sha256:.*$", r"\1", text)
    yield "another release of Debian", re.sub("(?m)^(ARG NODE=.*)trixie", r"\1bookworm", text)
    yield "another Rust", text.replace("ARG RUST=rust:1.", "ARG RUST=rust:2.")
    yield "root", re.sub("(?m)^USER .*$", "USER 0:0", text)
    yield "a user's name", re.sub("(?m)^USER .*$", "USER codex:codex", text)
    yield "no volume for the threads", text.replace('VOLUME ["/var/lib/codex", ', "VOLUME [")
    yield "no volume for what turns leave", text.replace(', "/tmp"]', "]")
    yield "a shell to start with", re.sub(r"(?m)^ENTRYPOINT .*$", "ENTRYPOINT codex-sidecar serve", text)
    yield "a shell for health", re.sub(r'(?m)^    CMD \[.*$', "    CMD codex-sidecar health", text)
    yield "another version", re.sub(r'(image\.version)="[^"]*"', r'\1="0.0.0"', text)
    yield "another licence", re.sub(r'(image\.licenses)="[^"]*"', r'\1="MIT"', text)


def main() -> None:
    text = (HERE / "Containerfile").read_text(encoding="utf-8")
    faults = image_faults(Image.parse(text))
    faults += [f"this was not noticed: {what}" for what, mutant in image_mutants(text) if not image_faults(Image.parse(mutant))]
    for fault in faults:
        print(f"Containerfile: {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)
    print("Containerfile: pinned, not root, no shell to start with, volumes for what is written; every planted fault was noticed")


if __name__ == "__main__":
    main()
