"""Makes a virtual environment from a list of pinned requirements, once.

    python3 tests/python/venv.py DIRECTORY REQUIREMENTS

Prints the path of the environment's Python on standard output, and nothing else
there. Fast when it is there already and the requirements are the same ones; safe when
several processes call it at once (two test binaries, say). Needs nothing but Python's
own library.
"""

import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig


def stamp_of(requirements: pathlib.Path) -> str:
    """What the environment was made from: the list and the interpreter.

    The interpreter too, because an environment stops working when the Python under it
    is replaced (a new minor version, another pyenv choice).
    """
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    return f"{digest} {sys.version} {sysconfig.get_platform()} {sys.base_prefix}\n"


def create(directory: pathlib.Path, requirements: pathlib.Path) -> None:
    # What is there is half made or of other requirements; pip would leave behind
    # what the new list no longer names.
    shutil.rmtree(directory, ignore_errors=True)
    print(f"venv: making {directory}", file=sys.stderr)
    try:
        subprocess.run(
            [sys.executable, "-m", "venv", str(directory)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
    except subprocess.CalledProcessError:
        sys.exit("venv: python3 cannot make virtual environments; on Debian that is the package python3-venv")
    result = subprocess.run(
        [
            str(directory / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
            # A wheel or nothing: building grpcio from source takes a quarter of an
            # hour, and a source package may fetch what it needs from anywhere.
            "--only-binary=:all:",
            "--requirement",
            str(requirements),
        ],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )
    if result.returncode != 0:
        sys.exit(f"venv: pip could not install what {requirements} names (its message is above)")


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: venv.py DIRECTORY REQUIREMENTS")
    directory = pathlib.Path(sys.argv[1]).absolute()
    requirements = pathlib.Path(sys.argv[2])
    python = directory / "bin" / "python"
    stamp = directory / "stamp"
    wanted = stamp_of(requirements)

    directory.parent.mkdir(parents=True, exist_ok=True)
    # Beside the directory, because the directory itself is deleted and made anew. The
    # kernel drops the lock when we end, however we end.
    with open(f"{directory}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and os.access(python, os.X_OK)):
            create(directory, requirements)
            # Last: an environment without it is one whose making was cut off.
            stamp.write_text(wanted, encoding="utf-8")
    print(python)


if __name__ == "__main__":
    main()
