"""Another language sees what Rust sees.

Drives a running sidecar through grpcio. The sidecar must run with the offline model
(`serve --offline-model`): its answers say what the model was sent. `run.sh` starts this.

CODEX_SIDECAR_ADDR  HOST:PORT of the sidecar.
"""

import os
import tempfile
import unittest
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from stubs import generate

ADDRESS = os.environ["CODEX_SIDECAR_ADDR"]
# On every call, so that a sidecar that hangs fails this test instead of hanging it. Far
# above what a turn takes (under a second): the machine may be busy building.
DEADLINE_SECONDS = 60
TERMINAL = {"turn_completed", "turn_failed", "turn_interrupted"}


def setUpModule() -> None:
    global codex_service_pb2, codex_service_pb2_grpc, options_pb2, pool_service_pb2, pool_service_pb2_grpc, turn_event_pb2
    made = tempfile.TemporaryDirectory(prefix="codex-sidecar-stubs-")
    unittest.addModuleCleanup(made.cleanup)
    generate(made.name)
    from codex.sidecar.v1 import (
        codex_service_pb2,
        codex_service_pb2_grpc,
        options_pb2,
        pool_service_pb2,
        pool_service_pb2_grpc,
        turn_event_pb2,
    )


class SidecarTest(unittest.TestCase):
    def setUp(self) -> None:
        # The sidecar is on this machine, never behind a proxy that the environment names.
        channel = grpc.insecure_channel(ADDRESS, options=[("grpc.enable_http_proxy", 0)])
        self.addCleanup(channel.close)
        # A sidecar that is still coming up is waited for here, once, and not by each call.
        grpc.channel_ready_future(channel).result(timeout=DEADLINE_SECONDS)
        self.codex = codex_service_pb2_grpc.CodexServiceStub(channel)
        self.pool = pool_service_pb2_grpc.PoolServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        # A directory of its own, and not the sidecar's: no turn touches the repository.
        directory = tempfile.TemporaryDirectory(prefix="codex-sidecar-work-")
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def run_turn(self, context_id: str, text: str) -> list:
        """Runs one turn to its end and checks what holds for every stream."""
        call = self.codex.RunTurn(
            codex_service_pb2.RunTurnRequest(
                context_id=context_id,
                inputs=[options_pb2.UserInput(text=text)],
                thread_options=options_pb2.ThreadOptions(
                    working_directory=self.directory,
                    skip_git_repo_check=True,
                    sandbox_mode=options_pb2.SANDBOX_MODE_READ_ONLY,
                    approval_policy=options_pb2.APPROVAL_POLICY_NEVER,
                ),
            ),
            timeout=DEADLINE_SECONDS,
        )
        events = [response.event for response in call]
        kinds = [event.WhichOneof("event") for event in events]
        self.assertEqual(call.code(), grpc.StatusCode.OK, kinds)

        self.assertEqual([event.sequence for event in events], list(range(1, len(events) + 1)), "a gap in the sequence")
        self.assertEqual(len({event.turn_id for event in events}), 1, "one turn id on every event")
        self.assertTrue(events[0].turn_id, "the turn id is there from the first event")
        self.assertTrue(all(event.HasField("emitted_at") for event in events))

        self.assertEqual([kind for kind in kinds if kind in TERMINAL], kinds[-1:], "one terminal event, and the last")
        # Only `queued` may come before the thread, and the thread before the turn.
        first = [kind for kind in kinds if kind != "queued"]
        self.assertEqual(first[:2], ["thread_started", "turn_started"], kinds)
        self.assertEqual(kinds.count("thread_started"), 1, kinds)
        return events

    @staticmethod
    def only(events: list, kind: str):
        (found,) = (getattr(event, kind) for event in events if event.WhichOneof("event") == kind)
        return found

    def refusal(self, request):
        """Sends what must be refused; gives the status and the details that came with it."""
        with self.assertRaises(grpc.RpcError) as raised:
            list(self.codex.RunTurn(request, timeout=DEADLINE_SECONDS))
        status = rpc_status.from_call(raised.exception)
        self.assertIsNotNone(status, f"no rich details: {raised.exception}")
        details = {}
        for packed in status.details:
            for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
                if packed.Is(kind.DESCRIPTOR):
                    message = kind()
                    packed.Unpack(message)
                    details[kind.__name__] = message
        return raised.exception.code(), details

    def test_two_turns_of_one_context_are_one_thread(self) -> None:
        context_id = f"python-{uuid.uuid4()}"
        first = self.run_turn(context_id, "first from Python")
        second = self.run_turn(context_id, "second from Python")

        started = [self.only(events, "thread_started") for events in (first, second)]
        self.assertTrue(started[0].thread_id)
        self.assertEqual(started[0].thread_id, started[1].thread_id)
        self.assertEqual(started[0].origin, turn_event_pb2.THREAD_ORIGIN_NEW)
        self.assertEqual(started[1].origin, turn_event_pb2.THREAD_ORIGIN_RESUMED)
        self.assertNotEqual(first[0].turn_id, second[0].turn_id)

        # The model itself says that it saw both turns: same thread id, same history.
        answers = [self.only(events, "turn_completed").final_response for events in (first, second)]
        self.assertEqual(answers[0], "You said: first from Python (user messages so far: 1)")
        self.assertEqual(answers[1], "You said: second from Python (user messages so far: 2)")
        for events, answer in zip((first, second), answers):
            deltas = (e.agent_message_delta.text for e in events if e.WhichOneof("event") == "agent_message_delta")
            self.assertEqual("".join(deltas), answer, "the deltas add up to the answer")

        # The turn's own use, not the thread's total so far.
        completed = self.only(second, "turn_completed")
        self.assertGreater(completed.usage.input_tokens, 0)
        self.assertGreater(completed.thread_usage.input_tokens, completed.usage.input_tokens)

        bound = self.codex.GetContext(
            codex_service_pb2.GetContextRequest(context_id=context_id), timeout=DEADLINE_SECONDS
        )
        self.assertEqual(bound.context.thread_id, started[0].thread_id)

    def test_a_request_without_input_is_refused_with_its_field(self) -> None:
        code, details = self.refusal(codex_service_pb2.RunTurnRequest(context_id="python"))
        self.assertEqual(code, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual(details["ErrorInfo"].reason, "INVALID_INPUT")
        self.assertEqual(details["ErrorInfo"].domain, "codex.sidecar")
        self.assertIn("inputs", [violation.field for violation in details["BadRequest"].field_violations])

    def test_health_serves_alive_and_ready(self) -> None:
        for service in ("", "codex.sidecar.v1.CodexService"):
            with self.subTest(service=service):
                answer = self.health.Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_SECONDS
                )
                self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING)
        with self.assertRaises(grpc.RpcError) as raised:
            self.health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=DEADLINE_SECONDS)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_the_pool_tells_its_workers(self) -> None:
        workers = self.pool.ListWorkers(pool_service_pb2.ListWorkersRequest(), timeout=DEADLINE_SECONDS).workers
        self.assertGreater(len(workers), 0)
