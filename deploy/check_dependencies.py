"""Checks what the sidecar depends on, by deny.toml: licences, duplicates, sources, advisories.

    check_dependencies.py

Runs cargo-deny over Cargo.lock. Like check_manifest.py, each rule is then shown the same
dependencies with one thing wrong, and must complain of just that.

The advisories are the RustSec database, which is no package of a registry: where it can't be
fetched within a minute they are left out, the last line says so, and the status is 0 all the
same. All else needs no network beyond crates.io.
"""

import copy
import json
import pathlib
import subprocess
import sys
import tempfile

CONFIG = pathlib.Path("deny.toml")
FETCH_SECONDS = 60
CHECKS = ["licenses", "bans", "sources"]


class Deny:
    """cargo-deny over the metadata of one graph."""

    def __init__(self, directory: str) -> None:
        self.program = pathlib.Path(sys.executable).with_name("cargo-deny")
        self.config = pathlib.Path(directory) / "deny.toml"
        self.metadata = pathlib.Path(directory) / "metadata.json"

    def run(self, *arguments: str, seconds: float | None = None) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self.program, "--config", self.config, "--color", "never", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def check(self, graph: dict, checks: list, config: str) -> subprocess.CompletedProcess:
        self.config.write_text(config, encoding="utf-8")
        self.metadata.write_text(json.dumps(graph), encoding="utf-8")
        # What a line in deny.toml is there for must be there, too.
        stale = ["--deny", "unmatched-skip", "--deny", "license-not-encountered"]
        return self.run("--metadata-path", str(self.metadata), "check", *stale, "--hide-inclusion-graph", *checks)

    def fetch_advisories(self, config: str) -> str | None:
        """Why not, or nothing."""
        try:
            self.config.write_text(config, encoding="utf-8")
            fetched = self.run("fetch", "db", seconds=FETCH_SECONDS)
        except subprocess.TimeoutExpired:
            return f"no answer within {FETCH_SECONDS} s"
        return None if fetched.returncode == 0 else fetched.stderr.strip().splitlines()[-1]


def mutants(graph: dict, config: str, advisories: bool):
    """Dependencies with one thing wrong, and how cargo-deny calls that."""

    def mutant(what, code, change):
        changed = copy.deepcopy(graph)
        change({package["name"]: package for package in changed["packages"]})
        return what, code, changed, config

    yield mutant("a licence that is not allowed", "rejected", lambda it: it["bytes"].update(license="GPL-3.0-only"))
    unexcused = "".join(line for line in config.splitlines(True) if not line.startswith("    { crate ="))
    yield "a crate in two versions that nothing excuses", "duplicate", graph, unexcused
    yield mutant(
        "any version of a crate", "wildcard", lambda it: it["codex-sidecar"]["dependencies"][0].update(req="*")
    )
    for what, source in (("a git repository", "git+https://example.com/bytes"), ("another registry", "registry+https://example.com/index")):
        yield mutant(what, "source-not-allowed", lambda it, source=source: it["bytes"].update(source=source))
    if advisories:
        # RUSTSEC-2024-0332: a flood of CONTINUATION frames.
        yield mutant("a version with a known flaw", "vulnerability", lambda it: it["h2"].update(version="0.4.3"))


def main() -> None:
    asked = subprocess.run(
        ["cargo", "metadata", "--locked", "--all-features", "--format-version", "1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
    )
    graph = json.loads(asked.stdout)
    config = CONFIG.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="codex-sidecar-check-") as directory:
        deny = Deny(directory)
        unreachable = deny.fetch_advisories(config)
        checks = CHECKS if unreachable else [*CHECKS, "advisories"]
        checked = deny.check(graph, checks, config)
        if checked.returncode != 0:
            sys.exit(checked.stderr + checked.stdout)
        missed = []
        for what, code, changed, with_config in mutants(graph, config, not unreachable):
            checked = deny.check(changed, checks, with_config)
            if checked.returncode == 0 or f"error[{code}]" not in checked.stderr:
                missed.append(f"{what}:\n{checked.stderr}")
    for what in missed:
        print(f"check_dependencies.py: this was not noticed: {what}", file=sys.stderr)
    if missed:
        sys.exit(1)
    print(f"dependencies: {', '.join(checks)} hold; every planted fault was noticed")
    if unreachable:
        print(f"left out: advisories, for want of their database: {unreachable}")


if __name__ == "__main__":
    main()
