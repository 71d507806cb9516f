"""openai-agents' same-thread example, unchanged but for CODEX_PATH.

    CODEX_PATH=…/codex-sidecar CODEX_SIDECAR_ADDR=127.0.0.1:50061 python test_same_thread.py

An agent whose tool is `codex_tool(name="codex_engineer", use_run_context_thread_id=True)`
runs twice with one context, once a Pydantic model and once a dict; both runs must be on
one Codex thread. The agent's own model is scripted here; Codex's is the sidecar's offline
model, whose answers the test knows. To the SDK, `codex-sidecar` is the Codex CLI.
"""

import asyncio
import json
import os
import pathlib
import tempfile

from agents import Agent, Model, ModelResponse, ModelSettings, Runner, Usage, set_tracing_disabled
from agents.extensions.experimental.codex import (
    Codex,
    CodexToolStreamEvent,
    ThreadOptions,
    ThreadStartedEvent,
    TurnCompletedEvent,
    TurnOptions,
    codex_tool,
)
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)
from pydantic import BaseModel

class ScriptedModel(Model):
    """Hands the user's words to the tool, and then says what the tool said."""

    async def get_response(self, system_instructions, input, model_settings, tools, *args, **kwargs):
        items = [{"role": "user", "content": input}] if isinstance(input, str) else input
        last = items[-1]
        if last.get("type") == "function_call_output":
            text = last["output"] if isinstance(last["output"], str) else json.dumps(last["output"])
            part = ResponseOutputText(text=text, type="output_text", annotations=[])
            answer = ResponseOutputMessage(
                id="m", content=[part], role="assistant", status="completed", type="message"
            )
        else:
            arguments = {"inputs": [{"type": "text", "text": last["content"]}]}
            answer = ResponseFunctionToolCall(
                call_id="call",
                name="codex_engineer",
                arguments=json.dumps(arguments),
                type="function_call",
            )
        return ModelResponse(output=[answer], usage=Usage(), response_id=None)

    def stream_response(self, *args, **kwargs):
        raise NotImplementedError


class MyContext(BaseModel):
    codex_thread_id_engineer: str | None = None


def make_agent(seen: list[CodexToolStreamEvent], work: str) -> Agent:
    async def on_stream(payload: CodexToolStreamEvent) -> None:
        seen.append(payload)

    return Agent(
        name="Codex Agent (same thread)",
        instructions="Always use the Codex tool to answer the user's question.",
        model=ScriptedModel(),
        tools=[
            codex_tool(
                name="codex_engineer",
                sandbox_mode="danger-full-access",
                working_directory=work,
                skip_git_repo_check=True,
                default_thread_options=ThreadOptions(
                    model="offline-model",
                    model_reasoning_effort="low",
                    network_access_enabled=True,
                    web_search_enabled=False,
                    approval_policy="never",
                ),
                on_stream=on_stream,
                use_run_context_thread_id=True,
            )
        ],
        model_settings=ModelSettings(tool_choice="required"),
    )


async def same_thread(context, read) -> None:
    seen: list[CodexToolStreamEvent] = []
    with tempfile.TemporaryDirectory() as work:
        agent = make_agent(seen, work)
        first = await Runner.run(agent, "Write a file. [[write server.py import http]]", context=context)
        thread_id = read(context)
        assert thread_id, context
        assert pathlib.Path(work, "server.py").read_text() == "import http\n"
        second = await Runner.run(agent, "Now add logging to it.", context=context)
    assert read(context) == thread_id, (context, thread_id)
    assert "user messages so far: 1" in first.final_output, first.final_output
    assert "user messages so far: 2" in second.final_output, second.final_output
    assert thread_id in second.final_output, second.final_output
    started = [event.event for event in seen if isinstance(event.event, ThreadStartedEvent)]
    assert [event.thread_id for event in started] == [thread_id, thread_id], started
    completed = [event.event for event in seen if isinstance(event.event, TurnCompletedEvent)]
    assert len(completed) == 2, seen
    # The usage is the thread's so far.
    assert completed[1].usage.input_tokens > completed[0].usage.input_tokens > 0, completed


async def failures_and_abort() -> None:
    """What the SDK makes of an exit status, and of a turn that it ends itself."""
    with tempfile.TemporaryDirectory() as work:
        options = ThreadOptions(
            working_directory=work, skip_git_repo_check=True, sandbox_mode="danger-full-access"
        )
        try:
            await Codex().start_thread(options).run("[[status 401]]")
        except RuntimeError as error:
            assert "401" in str(error), error
        else:
            raise AssertionError("a failed turn did not raise")
        # Not a repository: the SDK shows what was said on standard error.
        try:
            await Codex().start_thread({"working_directory": "/"}).run("hello")
        except RuntimeError as error:
            assert "Not inside a trusted directory" in str(error), error
        else:
            raise AssertionError("a refused directory did not raise")
        try:
            await Codex().start_thread(options).run("[[hang]]", TurnOptions(idle_timeout_seconds=3))
        except RuntimeError as error:
            assert "idle" in str(error), error
        else:
            raise AssertionError("an idle turn did not raise")


async def main() -> None:
    set_tracing_disabled(True)
    await same_thread(MyContext(), lambda context: context.codex_thread_id_engineer)
    await same_thread({}, lambda context: context.get("codex_thread_id_engineer"))
    await failures_and_abort()
    print(f"openai-agents on {os.environ['CODEX_PATH']}: same thread with a model and with a dict")


asyncio.run(main())
