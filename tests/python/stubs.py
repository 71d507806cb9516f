"""Stubs made here and now from `proto/`, so that what is tested is the contract as it is written."""

import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def generate(out: str) -> None:
    """Writes the stubs to a directory, which can be imported from afterwards."""
    proto = REPOSITORY / "proto"
    files = sorted(str(path.relative_to(proto)) for path in proto.glob("codex/**/*.proto"))
    if not files:
        sys.exit(f"no .proto file under {proto}")
    subprocess.run(
        # As a module it knows where its own google/protobuf/*.proto are.
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={out}", f"--grpc_python_out={out}", *files],
        check=True,
        cwd=proto,
        stdin=subprocess.DEVNULL,
    )
    sys.path.insert(0, out)
