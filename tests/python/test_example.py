"""The README's example is this folder's `example.py`, does what the README shows, and
keeps a turn whole whatever becomes of its connection.

CODEX_SIDECAR_ADDR  HOST:PORT of a sidecar with the offline model.
"""

import concurrent.futures
import contextlib
import importlib.util
import itertools
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
import uuid

import grpc

import stubs

ADDRESS = os.environ["CODEX_SIDECAR_ADDR"]
EXAMPLE = pathlib.Path(__file__).with_name("example.py")
# For one wait of a test; far above what it takes, since the machine may be busy building.
PATIENCE = 60


def setUpModule() -> None:
    made = tempfile.TemporaryDirectory(prefix="codex-sidecar-stubs-")
    unittest.addModuleCleanup(made.cleanup)
    stubs.generate(made.name)
    # For the example as a process of its own.
    os.environ["PYTHONPATH"] = made.name


class Proxy:
    """Stands between a client and the sidecar, and breaks their connections when it is told to."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.open: set = set()
        self.swallows = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                host, port = ADDRESS.rsplit(":", 1)
                server = socket.create_connection((host, int(port)))
                with self.lock:
                    self.open |= {client, server}
                threading.Thread(target=self._copy, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._copy, args=(server, client, True), daemon=True).start()

    def _copy(self, source, target, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self.lock:
                    if is_answer and self.swallows:
                        continue
                target.sendall(data)
        self._close(source, target)
        # By the thread that reads from it, so that its number is never another's meanwhile.
        source.close()

    def _close(self, *sockets) -> None:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            with self.lock:
                self.open.discard(one)

    def cut(self) -> None:
        with self.lock:
            sockets = list(self.open)
        self._close(*sockets)

    def close(self) -> None:
        # Closing alone leaves the thread in `accept`.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        self.listener.close()


class ExampleTest(unittest.TestCase):
    def setUp(self) -> None:
        self.proxy = Proxy()
        self.addCleanup(self.proxy.close)
        self.context_id = f"example-{uuid.uuid4()}"
        self.example = self.load(self.proxy.address)
        self.direct = self.load(ADDRESS)

    def load(self, address: str):
        """The example as a module, with a channel of its own to this address."""
        before, os.environ["CODEX_SIDECAR_ADDR"] = os.environ["CODEX_SIDECAR_ADDR"], address
        try:
            spec = importlib.util.spec_from_file_location(f"example_{uuid.uuid4().hex}", EXAMPLE)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        finally:
            os.environ["CODEX_SIDECAR_ADDR"] = before
        self.addCleanup(module.channel.close)
        return module

    def assert_whole(self, events: list) -> None:
        self.assertEqual([event.sequence for event in events], list(range(1, len(events) + 1)))
        self.assertEqual(len({event.turn_id for event in events}), 1)

    def messages_so_far(self) -> int:
        """How many user messages the model has seen in this context, the asking one included."""
        *_, last = self.direct.turn(self.context_id, "count", timeout=PATIENCE)
        return int(re.search(r"user messages so far: (\d+)", last.turn_completed.final_response)[1])

    def test_the_readme_shows_it_and_what_it_prints(self) -> None:
        readme = (stubs.REPOSITORY / "README.md").read_text(encoding="utf-8")
        blocks = re.findall(r"^```python\n((?:(?!```).*\n)*)```\n\n```text\n((?:(?!```).*\n)*)```\n", readme, re.MULTILINE)
        self.assertEqual(len(blocks), 1, "one example in Python with its output")
        code, output = blocks[0]
        self.assertEqual(code.splitlines(), EXAMPLE.read_text(encoding="utf-8").splitlines())
        # Whoever ran it before on this sidecar has no part in what it prints.
        with contextlib.suppress(grpc.RpcError):
            self.direct.codex.DeleteContext(self.direct.api.DeleteContextRequest(context_id="ticket-4711"), timeout=PATIENCE)
        ran = subprocess.run(
            [sys.executable, "-B", EXAMPLE], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=2 * PATIENCE
        )
        self.assertEqual((ran.returncode, ran.stdout), (0, output), ran.stderr)

    def test_a_turn_is_whole_although_its_connection_is_cut_in_its_middle(self) -> None:
        text = "[[slow 20]] [[words 100]]"
        events, deltas = [], itertools.count(1)
        for event in self.example.turn(self.context_id, text, timeout=PATIENCE):
            events.append(event)
            if event.HasField("agent_message_delta") and next(deltas) in (10, 30, 50):
                self.proxy.cut()
        self.assert_whole(events)
        said = "".join(event.agent_message_delta.text for event in events)
        self.assertEqual(said, " ".join(f"w{at}" for at in range(1, 101)))
        self.assertEqual(events[-1].turn_completed.final_response, said)
        self.assertEqual(self.messages_so_far(), 2, "the turn ran once")

    def test_a_turn_runs_once_although_nothing_of_its_first_connection_came_back(self) -> None:
        # Before anything is swallowed: the client calls nothing on a connection that is half made.
        grpc.channel_ready_future(self.example.channel).result(timeout=PATIENCE)
        self.proxy.swallows = True
        with concurrent.futures.ThreadPoolExecutor() as threads:
            running = threads.submit(lambda: list(self.example.turn(self.context_id, "once", timeout=PATIENCE)))
            self.wait_for_the_end_of_the_turn()
            self.proxy.swallows = False
            self.proxy.cut()
            events = running.result(timeout=PATIENCE)
        self.assert_whole(events)
        self.assertEqual(events[-1].turn_completed.final_response, "You said: once (user messages so far: 1)")
        self.assertEqual(self.messages_so_far(), 2, "the turn ran once")

    def test_what_the_sidecar_refuses_is_repeated_when_it_says(self) -> None:
        # As many as one context may have: one that runs and those that wait.
        api, codex = self.direct.api, self.direct.codex
        calls = []
        while True:
            call = codex.RunTurn(self.request("[[wait 60s]]"), timeout=PATIENCE)
            calls.append(call)
            try:
                first = next(call).event
            except grpc.RpcError as error:
                self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
                self.assertEqual(self.direct.detail(error, self.direct.ErrorInfo).reason, "CONTEXT_QUEUE_FULL")
                break
            self.assertLess(len(calls), 1000, "no bound")
        slept = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            for call in calls:
                call.cancel()
            time.sleep(seconds)

        self.example.time = types.SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
        events = list(self.example.turn(self.context_id, "at last", timeout=PATIENCE))
        self.assertTrue(slept and all(seconds > 0 for seconds in slept), slept)
        self.assert_whole(events)
        self.assertIn("You said: at last", events[-1].turn_completed.final_response)

    def test_an_answer_above_four_mebibytes_is_one_more_option_of_the_channel(self) -> None:
        text = "[[bytes 5000000]]"
        *_, last = self.example.turn(self.context_id, text, timeout=PATIENCE)
        self.assertEqual(len(last.turn_completed.final_response), 5_000_000)
        # As gRPC is by default: the turn completes, and the client says this by itself.
        channel = grpc.insecure_channel(ADDRESS)
        self.addCleanup(channel.close)
        codex = self.direct.codex_service_pb2_grpc.CodexServiceStub(channel)
        with self.assertRaises(grpc.RpcError) as raised:
            list(codex.RunTurn(self.request(text), timeout=PATIENCE))
        self.assertEqual(raised.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertEqual(self.direct.detail(raised.exception, self.direct.ErrorInfo).domain, "")
        self.assertEqual(self.messages_so_far(), 3)

    def wait_for_the_end_of_the_turn(self) -> None:
        context = self.direct.api.AttachTurnRequest(context={"context_id": self.context_id})
        end = time.monotonic() + PATIENCE
        while True:
            try:
                list(self.direct.codex.AttachTurn(context, timeout=PATIENCE))
                return
            except grpc.RpcError as error:
                # Its call is on the way.
                if error.code() != grpc.StatusCode.NOT_FOUND or time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def request(self, text: str):
        return self.direct.api.RunTurnRequest(
            context_id=self.context_id,
            inputs=[{"text": text}],
            thread_options={"working_directory": "/", "skip_git_repo_check": True},
        )
