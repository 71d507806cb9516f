"""What Codex asks reaches a caller in another language, and what becomes of each kind of question.

Every kind is answered, declined, too late, interrupted, lost with its worker, and answered by somebody
else after its caller has gone. `approver.py` is the README's example of a caller that approves and lends a
function: what the README shows of it is what it does.

CODEX_SIDECAR_ADDR  HOST:PORT of a sidecar with the offline model and one worker on this machine. Elicitations
                    are asked only where its CODEX_HOME has the MCP server `desk`, `tests/mcp/desk.py`.
"""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import uuid

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_status import rpc_status

import stubs

ADDRESS = os.environ["CODEX_SIDECAR_ADDR"]
APPROVER = pathlib.Path(__file__).with_name("approver.py")
# For one call of a test; far above what it takes, since the machine may be busy building.
PATIENCE = 60
LENT = {
    "name": "look",
    "description": "Looks something up",
    "input_schema": '{"type": "object", "properties": {"n": {"type": "integer"}}}',
}
ASK = {"question_policy": "QUESTION_POLICY_ASK"}


def setUpModule() -> None:
    global api, turn_event
    made = tempfile.TemporaryDirectory(prefix="codex-sidecar-stubs-")
    unittest.addModuleCleanup(made.cleanup)
    stubs.generate(made.name)
    # For the example as a process of its own.
    os.environ["PYTHONPATH"] = made.name
    from codex.sidecar.v1 import codex_service_pb2 as api, turn_event_pb2 as turn_event


def details(error: grpc.RpcError, kind):
    found = [kind.FromString(it.value) for it in rpc_status.from_call(error).details if it.Is(kind.DESCRIPTOR)]
    return found[0]


def approval(decision: str, **more) -> dict:
    return {"approval": {"decision": f"APPROVAL_DECISION_{decision}", **more}}


def elicitation(action: str, content: str = "") -> dict:
    return {"elicitation": {"action": f"ELICITATION_ACTION_{action}", "content_json": content}}


def said(*answers: str) -> dict:
    return {"user_questions": {"answers": [{"question_id": "q1", "answers": answers}]}}


def given_back(text: str, success: bool = True) -> dict:
    return {"tool_call": {"content": [{"text": text}], "success": success}}


GRANT = '{"network": {"enabled": true}}'
# By its name in the contract: what has Codex ask, two answers, and one that does not fit with its path.
KINDS = {
    "command_approval": (
        "[[escalate touch FILE]]",
        approval("ACCEPT"),
        approval("DECLINE"),
        (approval("ACCEPT_FOR_SESSION"), "approval.decision"),
    ),
    "file_change_approval": (
        "[[write FILE x]]",
        approval("ACCEPT"),
        approval("DECLINE"),
        (approval("ACCEPT_WITH_EXEC_POLICY_AMENDMENT"), "approval.decision"),
    ),
    "permissions_approval": (
        f"[[permit {GRANT}]]",
        {"permissions": {"permissions_json": GRANT}},
        {"permissions": {}},
        ({"permissions": {"permissions_json": '{"fileSystem": {"write": ["/"]}}'}}, "permissions.permissions_json"),
    ),
    "user_questions": (
        "[[ask Which? | Red | Blue]]",
        said("Blue"),
        said(),
        ({"user_questions": {"answers": [{"question_id": "q2"}]}}, "user_questions.answers[0].question_id"),
    ),
    "elicitation": (
        "[[tool desk.form]]",
        elicitation("ACCEPT", '{"name": "Bo"}'),
        elicitation("DECLINE"),
        (elicitation("ACCEPT", '{"name": 7}'), "elicitation.content_json"),
    ),
    "tool_call": (
        '[[tool look {"n": 1}]]',
        given_back("found"),
        given_back("not there", success=False),
        ({"approval": {}}, "approval"),
    ),
}


class QuestionsTest(unittest.TestCase):
    def setUp(self) -> None:
        from codex.sidecar.v1 import codex_service_pb2_grpc, pool_service_pb2, pool_service_pb2_grpc

        channel = grpc.insecure_channel(ADDRESS, options=[("grpc.enable_http_proxy", 0)])
        self.addCleanup(channel.close)
        self.codex = codex_service_pb2_grpc.CodexServiceStub(channel)
        self.pool = pool_service_pb2_grpc.PoolServiceStub(channel)
        self.list_workers = pool_service_pb2.ListWorkersRequest()
        work = tempfile.TemporaryDirectory(prefix="codex-sidecar-work-")
        self.addCleanup(work.cleanup)
        self.work = work.name
        self.file = pathlib.Path(work.name, "touched")

    def of_each_kind(self, test) -> None:
        """Runs a test of all kinds that this sidecar can be made to ask."""
        has_desk = "mcp__desk" in self.final("[[show /tools]]")
        for kind, (words, *answers) in KINDS.items():
            if kind == "elicitation" and not has_desk:
                print("elicitations are left out: the sidecar has no MCP server `desk`", file=sys.stderr)
                continue
            self.file.unlink(missing_ok=True)
            with self.subTest(kind):
                test(kind, words.replace("FILE", str(self.file)) + " [[say went on]]", *answers)

    def begin(self, words: str, **more):
        request = {
            "context_id": f"questions-{uuid.uuid4()}",
            "inputs": [{"text": words}],
            "thread_options": {
                "working_directory": self.work,
                "skip_git_repo_check": True,
                "sandbox_mode": "SANDBOX_MODE_READ_ONLY",
                "approval_policy": "APPROVAL_POLICY_ON_REQUEST",
                "dynamic_tools": [LENT],
            },
            **more,
        }
        return self.codex.RunTurn(api.RunTurnRequest(**request), timeout=PATIENCE)

    def final(self, words: str) -> str:
        return [response.event for response in self.begin(words)][-1].turn_completed.final_response

    def asked(self, call, kind: str):
        """Reads on until the turn asks this: its id, and what is asked."""
        for response in call:
            if response.event.HasField("request_raised"):
                request = response.event.request_raised.request
                self.assertEqual(request.WhichOneof("kind"), kind)
                return response.event.turn_id, request
        self.fail("the turn asked nothing")

    def answer(self, turn_id: str, request_id: str, answer: dict):
        request = api.AnswerRequestRequest(turn_id=turn_id, request_id=request_id, **answer)
        return self.codex.AnswerRequest(request, timeout=PATIENCE)

    def assert_refused(self, code: str, reason: str, turn_id: str, request_id: str, answer: dict):
        with self.assertRaises(grpc.RpcError) as raised:
            self.answer(turn_id, request_id, answer)
        error = raised.exception
        self.assertEqual((error.code().name, details(error, ErrorInfo).reason), (code, reason), error.details())
        return error

    def assert_too_late(self, *answer) -> None:
        self.assert_refused("FAILED_PRECONDITION", "REQUEST_ALREADY_RESOLVED", *answer)

    def rest(self, call, resolution: str) -> list:
        """The rest of a turn in which one question was settled so."""
        events = [response.event for response in call]
        settled = [event.request_resolved for event in events if event.HasField("request_resolved")]
        self.assertEqual(len(settled), 1, events)
        name = turn_event.RequestResolution.Name(settled[0].resolution)
        self.assertEqual(name, f"REQUEST_RESOLUTION_{resolution}")
        return events

    def assert_went_on(self, events: list) -> None:
        self.assertEqual(events[-1].turn_completed.final_response, "went on", events[-1])

    def test_every_kind_is_answered(self) -> None:
        def test(kind, words, yes, no, unfit) -> None:
            for answer, other in ((yes, no), (no, yes)):
                call = self.begin(words, **ASK)
                turn_id, request = self.asked(call, kind)
                wrong, path = unfit
                error = self.assert_refused("INVALID_ARGUMENT", "INVALID_INPUT", turn_id, request.request_id, wrong)
                paths = {violation.field for violation in details(error, BadRequest).field_violations}
                self.assertEqual(paths, {path}, error.details())
                self.answer(turn_id, request.request_id, answer)
                self.assert_went_on(self.rest(call, "ANSWERED"))
                # The same again is no other answer; another one comes too late.
                self.answer(turn_id, request.request_id, answer)
                self.assert_too_late(turn_id, request.request_id, other)
                may_write = kind in ("command_approval", "file_change_approval") and answer is yes
                self.assertEqual(self.file.exists(), may_write)
                self.file.unlink(missing_ok=True)

        self.of_each_kind(test)

    def test_who_knows_nothing_of_questions_never_waits(self) -> None:
        def test(kind, words, yes, *_) -> None:
            if kind == "tool_call":
                return  # Who lends a function answers for it.
            call = self.begin(words)
            turn_id, request = self.asked(call, kind)
            self.assert_went_on(self.rest(call, "DECLINED"))
            self.assert_too_late(turn_id, request.request_id, yes)
            self.assertFalse(self.file.exists())

        self.of_each_kind(test)

    def test_what_nobody_answers_in_time_is_declined(self) -> None:
        def test(kind, words, yes, *_) -> None:
            call = self.begin(words, turn_options={"answer_timeout": {"nanos": 300_000_000}}, **ASK)
            turn_id, request = self.asked(call, kind)
            self.assert_went_on(self.rest(call, "TIMED_OUT"))
            self.assert_too_late(turn_id, request.request_id, yes)
            self.assertFalse(self.file.exists())

        self.of_each_kind(test)

    def test_an_interruption_takes_a_question_back(self) -> None:
        def test(kind, words, yes, *_) -> None:
            call = self.begin(words, **ASK)
            turn_id, request = self.asked(call, kind)
            self.codex.InterruptTurn(api.InterruptTurnRequest(turn_id=turn_id), timeout=PATIENCE)
            events = self.rest(call, "WITHDRAWN")
            self.assertTrue(events[-1].HasField("turn_interrupted"), events[-1])
            self.assert_too_late(turn_id, request.request_id, yes)
            self.assertFalse(self.file.exists())

        self.of_each_kind(test)

    def test_a_question_is_lost_with_its_worker(self) -> None:
        def test(kind, words, yes, *_) -> None:
            call = self.begin(words, **ASK)
            turn_id, request = self.asked(call, kind)
            for worker in self.pool.ListWorkers(self.list_workers, timeout=PATIENCE).workers:
                os.kill(worker.pid, signal.SIGKILL)
            events = self.rest(call, "WITHDRAWN")
            self.assertEqual(events[-1].turn_failed.error.reason, "WORKER_LOST")
            self.assert_too_late(turn_id, request.request_id, yes)
            self.assertFalse(self.file.exists())
            self.wait_for_a_worker()

        self.of_each_kind(test)

    def test_a_question_outlives_its_caller_and_anybody_answers(self) -> None:
        def test(kind, words, yes, *_) -> None:
            call = self.begin(words, disconnect_policy="DISCONNECT_POLICY_CONTINUE", **ASK)
            turn_id, request = self.asked(call, kind)
            call.cancel()
            attached = self.codex.AttachTurn(api.AttachTurnRequest(turn_id=turn_id), timeout=PATIENCE)
            self.assertEqual(self.asked(attached, kind), (turn_id, request))
            self.answer(turn_id, request.request_id, yes)
            self.assert_went_on(self.rest(attached, "ANSWERED"))

        self.of_each_kind(test)

    def test_a_function_is_called_several_times_at_once(self) -> None:
        words = " [[and]] ".join(f'[[tool look {{"n": {n}}}]]' for n in (1, 2, 3)) + " [[say went on]]"
        call = self.begin(words)
        waiting = [self.asked(call, "tool_call") for _ in range(3)]
        numbers = [json.loads(request.tool_call.arguments_json)["n"] for _, request in waiting]
        # Codex may ask for them in another order than they were made in.
        self.assertEqual(sorted(numbers), [1, 2, 3])
        for turn_id, request in reversed(waiting):
            self.answer(turn_id, request.request_id, given_back(request.tool_call.arguments_json))
        events = [response.event for response in call]
        self.assert_went_on(events)
        items = [event.item_completed.item for event in events if event.HasField("item_completed")]
        calls = [item.dynamic_tool_call for item in items if item.HasField("dynamic_tool_call")]
        self.assertEqual([call.success for call in calls], [True] * 3)

    def wait_for_a_worker(self) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.final("hello")
                return
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > end:
                    raise
                time.sleep(0.1)


class ApproverTest(unittest.TestCase):
    def test_the_readme_shows_it_and_what_it_does(self) -> None:
        readme = (stubs.REPOSITORY / "README.md").read_text(encoding="utf-8")
        shown = re.findall(r"^```python\n((?:(?!```).*\n)*)```\n\n```console\n((?:(?!```).*\n)*)```\n", readme, re.MULTILINE)
        self.assertEqual(len(shown), 1, "one example that asks")
        code, session = shown[0]
        self.assertEqual(code, APPROVER.read_text(encoding="utf-8"))
        command, _, told = session.partition("\n")
        *_, prompt = shlex.split(command)
        # What a person types is shown, and not printed.
        typed = re.findall(r"\[y/N\] (\w*)\n", told)
        printed = re.sub(r"(\[y/N\] )\w*\n", r"\1", told)
        with tempfile.TemporaryDirectory(prefix="codex-sidecar-shop-") as shop:
            pathlib.Path(shop, ".git", "objects").mkdir(parents=True)
            pathlib.Path(shop, ".git", "refs", "heads").mkdir(parents=True)
            pathlib.Path(shop, ".git", "HEAD").write_text("ref: refs/heads/main\n")
            pathlib.Path(shop, "basket").touch()
            ran = subprocess.run(
                [sys.executable, "-B", APPROVER, prompt],
                input="".join(f"{word}\n" for word in typed),
                capture_output=True,
                text=True,
                timeout=2 * PATIENCE,
                cwd=shop,
            )
            self.assertEqual((ran.returncode, ran.stdout), (0, printed), ran.stderr)
            self.assertFalse(pathlib.Path(shop, "basket").exists(), "it was allowed")
