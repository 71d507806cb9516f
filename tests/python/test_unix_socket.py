"""A Unix socket, which grpc-core reaches only with an authority of its own.

grpc-core 1.57 and newer, grpc-java and grpc-swift send the percent-encoded path of the
socket as `:authority`, which the sidecar's HTTP/2 refuses as malformed.

CODEX_SIDECAR_SOCKET  path of the socket.
"""

import os
import tempfile
import unittest

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import stubs

SOCKET = os.environ.get("CODEX_SIDECAR_SOCKET", "")
DEADLINE_SECONDS = 60


def setUpModule() -> None:
    if not SOCKET:
        raise unittest.SkipTest("CODEX_SIDECAR_SOCKET says no path")
    made = tempfile.TemporaryDirectory(prefix="codex-sidecar-stubs-")
    unittest.addModuleCleanup(made.cleanup)
    stubs.generate(made.name)


class UnixSocketTest(unittest.TestCase):
    def channel(self, *options) -> grpc.Channel:
        channel = grpc.insecure_channel(f"unix:{SOCKET}", options=options)
        self.addCleanup(channel.close)
        return channel

    def test_a_turn_runs_over_it_with_a_default_authority(self) -> None:
        from codex.sidecar.v1 import codex_service_pb2, codex_service_pb2_grpc

        codex = codex_service_pb2_grpc.CodexServiceStub(self.channel(("grpc.default_authority", "localhost")))
        request = codex_service_pb2.RunTurnRequest(
            ephemeral=True,
            inputs=[{"text": "over a socket"}],
            thread_options={"working_directory": "/", "skip_git_repo_check": True},
        )
        *_, last = codex.RunTurn(request, timeout=DEADLINE_SECONDS)
        self.assertIn("You said: over a socket", last.event.turn_completed.final_response)

    def test_without_it_every_call_is_reset(self) -> None:
        # Should this call be served one day, README and proto need no word about it any more.
        health = health_pb2_grpc.HealthStub(self.channel())
        with self.assertRaises(grpc.RpcError) as raised:
            health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_SECONDS)
        # These words are in the README, for whoever searches for them.
        self.assertIn("RST_STREAM", raised.exception.details())
        readme = (stubs.REPOSITORY / "README.md").read_text(encoding="utf-8")
        words = raised.exception.details()
        self.assertTrue(words in readme, f"the README does not have {words!r}")
