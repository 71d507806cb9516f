"""Stands in front of the Codex CLI as a CLI that says of a turn that it has it, and has never heard of it.

    CODEX_PATH=this REAL_CODEX=the real one: whatever is not `app-server` goes straight to that.
"""

import json
import os
import subprocess
import sys
import threading

real = os.environ["REAL_CODEX"]
if sys.argv[1:2] != ["app-server"]:
    os.execv(real, [real, *sys.argv[1:]])
codex = subprocess.Popen([real, *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
whole_lines = threading.Lock()


def say(line: bytes) -> None:
    with whole_lines:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def pass_on() -> None:
    for line in codex.stdout:
        say(line)


threading.Thread(target=pass_on, daemon=True).start()
for line in sys.stdin.buffer:
    call = json.loads(line)
    if call.get("method") == "turn/start":
        turn = {"id": "01a22262-0000-7000-8000-000000000001", "rootTurnId": call["params"]["rootTurnId"]}
        say(json.dumps({"id": call["id"], "result": {"turn": turn}}).encode() + b"\n")
    else:
        codex.stdin.write(line)
        codex.stdin.flush()
