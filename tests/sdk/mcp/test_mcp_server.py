"""`codex-sidecar mcp` as a client sees it that its authors did not write: PyPI's `mcp`.

    CODEX_SIDECAR=…/codex-sidecar CODEX_SIDECAR_ADDR=127.0.0.1:50061 python test_mcp_server.py
"""

import asyncio
import contextlib
import json
import os
import pathlib
import tempfile
import unittest

from mcp import Client, StdioServerParameters
from mcp.client.extension import ClientExtension, NotificationBinding
from mcp_types import ElicitResult
from pydantic import BaseModel, ConfigDict

#: How long anything may take that has no better bound.
PATIENCE = 60.0


def runs(words: str) -> bool:
    """Whether a process of this command line runs."""
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if line == words:
                return True
    return False


async def until(what: str, holds) -> None:
    """Waits for what has no event to wait for."""
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.02)
    assert holds(), what


def escalated(command: str) -> str:
    """A prompt that has the model ask for leave to run this outside of the sandbox."""
    arguments = {"cmd": command, "sandbox_permissions": "require_escalated", "justification": "may I?"}
    return f"[[tool exec_command {json.dumps(arguments)}]] [[say done]]"


class Event(BaseModel):
    """The parameters of a `codex/event` notification."""

    model_config = ConfigDict(extra="allow")
    msg: dict


class Events(ClientExtension):
    """Has the client hand on what it would drop: a method that the protocol does not know."""

    identifier = "sidecar.codex/events"

    def __init__(self) -> None:
        self.told: list[Event] = []

    async def take(self, event: Event) -> None:
        self.told.append(event)

    def notifications(self) -> list[NotificationBinding]:
        return [NotificationBinding(method="codex/event", params_type=Event, handler=self.take)]

    def of(self, kind: str) -> list[dict]:
        return [event.msg for event in self.told if event.msg["type"] == kind]


class McpServer(unittest.IsolatedAsyncioTestCase):
    def setUp(self) -> None:
        work = tempfile.TemporaryDirectory()
        self.addCleanup(work.cleanup)
        self.work = pathlib.Path(work.name).resolve()

    def client(self, *, address: str = os.environ["CODEX_SIDECAR_ADDR"], **options) -> Client:
        server = StdioServerParameters(
            command=os.environ["CODEX_SIDECAR"],
            args=["mcp"],
            env={"CODEX_SIDECAR_ADDR": address},
            cwd=self.work,
        )
        return Client(server, **options)

    async def call(self, client: Client, tool: str, *, progress=None, **arguments):
        async with asyncio.timeout(PATIENCE):
            arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
            return await client.call_tool(tool, arguments, progress_callback=progress)

    def said(self, result) -> str:
        self.assertFalse(result.is_error, result)
        [content] = result.content
        self.assertEqual(result.structured_content["content"], content.text)
        return content.text

    def complained(self, result) -> str:
        self.assertTrue(result.is_error, result)
        [content] = result.content
        return content.text

    async def test_the_tools_are_those_that_codex_mcp_server_had(self) -> None:
        async with self.client() as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        self.assertEqual(set(tools), {"codex", "codex-reply"})
        codex, reply = tools["codex"].input_schema, tools["codex-reply"].input_schema
        self.assertEqual(
            set(codex["properties"]),
            {
                "prompt",
                "model",
                "cwd",
                "approval-policy",
                "sandbox",
                "config",
                "base-instructions",
                "developer-instructions",
                "compact-prompt",
            },
        )
        self.assertEqual((codex["required"], codex["additionalProperties"]), (["prompt"], False))
        self.assertEqual(set(reply["properties"]), {"prompt", "threadId", "conversationId"})
        self.assertEqual(reply["required"], ["prompt"])
        for tool in tools.values():
            self.assertEqual(set(tool.output_schema["required"]), {"threadId", "content"})

    async def test_a_conversation_goes_on_as_it_began(self) -> None:
        elsewhere = self.work / "elsewhere"
        elsewhere.mkdir()
        steps: list[tuple[float, str]] = []

        async def progress(step: float, total: float | None, message: str | None) -> None:
            steps.append((step, message))

        async with self.client() as client:
            first = await self.call(
                client,
                "codex",
                prompt="[[run pwd > first]] [[say one]]",
                cwd="elsewhere",
                sandbox="danger-full-access",
                progress=progress,
            )
            self.assertEqual(self.said(first), "one")
            thread = first.structured_content["threadId"]
            # Without the sandbox and the directory of the first call this could write nothing there.
            prompt = "[[run pwd > second]] [[say two]]"
            second = await self.call(client, "codex-reply", prompt=prompt, threadId=thread)
            self.assertEqual(self.said(second), "two")
            self.assertEqual(second.structured_content["threadId"], thread)
            third = await self.call(client, "codex-reply", prompt="three", conversationId=thread)
            self.assertIn("user messages so far: 3", self.said(third))
        for name in ("first", "second"):
            self.assertEqual((elsewhere / name).read_text().strip(), str(elsewhere))
        numbers = [step for step, _ in steps]
        self.assertEqual(numbers, sorted(set(numbers)))
        self.assertTrue(any("pwd > first" in message for _, message in steps), steps)

        # Another process knows no more than the thread.
        async with self.client() as client:
            fourth = await self.call(client, "codex-reply", prompt="four", threadId=thread)
            self.assertIn("user messages so far: 4", self.said(fourth))

    async def test_what_a_turn_does_is_told_under_the_old_names(self) -> None:
        events = Events()
        async with self.client(extensions=[events]) as client:
            prompt = "[[plan a; b]] [[run echo hi; exit 3]] [[write notes.txt x]] [[say done]]"
            result = await self.call(client, "codex", prompt=prompt, sandbox="danger-full-access")
            await until("the last event", lambda: events.of("task_complete"))
        thread = result.structured_content["threadId"]
        [configured] = events.of("session_configured")
        self.assertEqual(configured["model"], "offline-model")
        self.assertEqual((configured["session_id"], configured["cwd"]), (thread, str(self.work)))
        [ended] = events.of("exec_command_end")
        self.assertEqual((ended["exit_code"], ended["aggregated_output"]), (3, "hi\n"))
        self.assertEqual(ended["command"][-1], "echo hi; exit 3")
        [patched] = events.of("patch_apply_end")
        self.assertEqual(patched["changes"], {f"{self.work}/notes.txt": {"type": "add", "content": "x\n"}})
        self.assertIn({"step": "b", "status": "in_progress"}, events.of("plan_update")[0]["plan"])
        self.assertEqual(events.of("agent_message")[-1]["message"], "done")
        self.assertEqual(events.of("task_complete")[0]["last_agent_message"], "done")
        self.assertTrue(events.of("token_count"))
        for event in events.told:
            self.assertEqual(event.model_extra["_meta"]["threadId"], thread)

    async def test_what_fails_is_told_as_the_calls_result(self) -> None:
        unknown = "01a2027c-e0ba-7870-bb86-73c090781e3b"
        async with self.client() as client:
            failed = await self.call(client, "codex", prompt="[[status 401]]")
            self.assertIn("401 Unauthorized", self.complained(failed))
            self.assertTrue(failed.structured_content["threadId"])
            for tool, arguments, why in [
                ("codex", {}, "missing field `prompt`"),
                ("codex", {"prompt": "x", "nonsense": 1}, "unknown field `nonsense`"),
                ("codex", {"prompt": "x", "cwd": "nowhere"}, "nowhere"),
                ("codex-reply", {"prompt": "x"}, "either threadId or conversationId"),
                ("codex-reply", {"prompt": "x", "threadId": unknown}, unknown),
                ("nope", {}, "Unknown tool 'nope'"),
            ]:
                result = await self.call(client, tool, **arguments)
                self.assertIn(why, self.complained(result))
            # And it serves on.
            self.assertIn("hello", self.said(await self.call(client, "codex", prompt="hello")))

    async def test_without_a_sidecar_it_serves_and_each_call_says_so(self) -> None:
        async with self.client(address="127.0.0.1:9") as client:
            for _ in range(2):
                result = await self.call(client, "codex", prompt="hello")
                self.assertIn("can't reach a sidecar at 127.0.0.1:9", self.complained(result))

    async def approval(self, action: str | None) -> list[str]:
        """Has Codex ask for leave to write a file; gives what the client was asked."""
        asked: list[str] = []

        async def elicited(context, params) -> ElicitResult:
            asked.append(params.message)
            return ElicitResult(action=action, content={} if action == "accept" else None)

        callback = {} if action is None else {"elicitation_callback": elicited}
        async with self.client(**callback) as client:
            result = await self.call(
                client,
                "codex",
                prompt=escalated(f"touch {self.work}/allowed"),
                sandbox="read-only",
                approval_policy="on-request",
            )
            if action == "cancel":
                self.assertIn("interrupted", self.complained(result))
            else:
                self.assertEqual(self.said(result), "done")
        self.assertEqual((self.work / "allowed").exists(), action == "accept")
        return asked

    async def test_an_approval_is_an_elicitation_and_acceptance_counts(self) -> None:
        [message] = await self.approval("accept")
        self.assertIn(f"touch {self.work}/allowed", message)

    async def test_a_declined_approval_lets_the_turn_go_on(self) -> None:
        self.assertEqual(len(await self.approval("decline")), 1)

    async def test_a_cancelled_approval_ends_the_turn(self) -> None:
        self.assertEqual(len(await self.approval("cancel")), 1)

    async def test_a_client_without_elicitations_has_approvals_declined_at_once(self) -> None:
        self.assertEqual(await self.approval(None), [])

    async def test_calls_run_side_by_side(self) -> None:
        async with self.client() as client:
            # Each waits for the other's file: one after the other would wait for ever.
            def meet(own: str, other: str) -> str:
                wait = f"touch {own}; while [ ! -e {other} ]; do sleep 0.05; done"
                return f"[[run {wait}]] [[say {own}]]"

            names = [("a", "b"), ("b", "a")]
            calls = [
                self.call(client, "codex", prompt=meet(*pair), sandbox="danger-full-access")
                for pair in names
            ]
            results = await asyncio.gather(*calls)
        self.assertEqual([self.said(result) for result in results], ["a", "b"])
        self.assertEqual(len({result.structured_content["threadId"] for result in results}), 2)

    async def test_a_cancelled_call_interrupts_its_turn(self) -> None:
        async with self.client() as client:
            sleeping = asyncio.create_task(
                self.call(client, "codex", prompt="[[run sleep 61.7]]", sandbox="danger-full-access")
            )
            await until("the command", lambda: runs("sleep 61.7"))
            sleeping.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await sleeping
            await until("its end", lambda: not runs("sleep 61.7"))
            # The others are not touched.
            self.assertIn("hello", self.said(await self.call(client, "codex", prompt="hello")))

    async def test_a_question_of_a_cancelled_call_is_taken_back(self) -> None:
        asked, taken_back = asyncio.Event(), asyncio.Event()

        async def elicited(context, params) -> ElicitResult:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                taken_back.set()

        async with self.client(elicitation_callback=elicited) as client:
            calling = asyncio.create_task(
                self.call(
                    client,
                    "codex",
                    prompt=escalated(f"touch {self.work}/allowed"),
                    sandbox="read-only",
                    approval_policy="on-request",
                )
            )
            async with asyncio.timeout(PATIENCE):
                await asked.wait()
                calling.cancel()
                await taken_back.wait()
            await asyncio.gather(calling, return_exceptions=True)
            self.assertIn("hello", self.said(await self.call(client, "codex", prompt="hello")))
        self.assertFalse((self.work / "allowed").exists())

    async def test_a_client_that_goes_away_leaves_nothing_running(self) -> None:
        async with self.client() as client:
            sleeping = asyncio.create_task(
                self.call(client, "codex", prompt="[[run sleep 61.8]]", sandbox="danger-full-access")
            )
            await until("the command", lambda: runs("sleep 61.8"))
        await asyncio.gather(sleeping, return_exceptions=True)
        await until("its end", lambda: not runs("sleep 61.8"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
