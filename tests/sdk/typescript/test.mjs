// @openai/codex-sdk, unchanged but for codexPathOverride.
//
//     CODEX_SIDECAR=…/codex-sidecar CODEX_SIDECAR_ADDR=127.0.0.1:50061 node test.mjs
//
// The sidecar must be one with the offline model, whose answers the test knows. It is run
// from a directory in which the SDK is installed.

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";

import { Codex } from "@openai/codex-sdk";

const codex = new Codex({ codexPathOverride: process.env.CODEX_SIDECAR });
const work = mkdtempSync(path.join(tmpdir(), "codex-sdk-"));
const options = {
  workingDirectory: work,
  skipGitRepoCheck: true,
  sandboxMode: "danger-full-access",
  model: "offline-model",
  modelReasoningEffort: "low",
  networkAccessEnabled: true,
  webSearchMode: "disabled",
  approvalPolicy: "never",
};

try {
  // startThread, run
  const thread = codex.startThread({ ...options, threadSource: "batch" });
  const first = await thread.run("one [[run echo hi]] [[write a.txt hello]]");
  assert.match(first.finalResponse, /user messages so far: 1/);
  assert.deepEqual(first.items.map((item) => item.type), ["command_execution", "file_change", "agent_message"]);
  assert.equal(first.items[0].aggregated_output, "hi\n");
  assert.equal(readFileSync(path.join(work, "a.txt"), "utf8"), "hello\n");
  assert.ok(first.usage.input_tokens > 0);
  assert.ok(thread.id);

  // the same thread again: the usage is the thread's so far
  const id = thread.id;
  const second = await thread.run([{ type: "text", text: "two" }, { type: "text", text: "parts" }]);
  assert.equal(thread.id, id);
  assert.match(second.finalResponse, /two\n\nparts \(user messages so far: 2\)/);
  assert.ok(second.usage.input_tokens > first.usage.input_tokens);

  // resumeThread
  const resumed = codex.resumeThread(id, options);
  const third = await resumed.run("three");
  assert.equal(resumed.id, id);
  assert.match(third.finalResponse, /user messages so far: 3/);

  // runStreamed
  const { events } = await codex.startThread(options).runStreamed("[[plan a; b]] [[reason hm]] [[say done]]");
  const types = [];
  for await (const event of events) types.push(event.item ? `${event.type} ${event.item.type}` : event.type);
  assert.deepEqual(types, [
    "thread.started",
    "turn.started",
    "item.started todo_list",
    "item.completed reasoning",
    "item.completed agent_message",
    "item.completed todo_list",
    "turn.completed",
  ]);

  // output schema
  const schema = {
    type: "object",
    properties: { answer: { type: "string" } },
    required: ["answer"],
    additionalProperties: false,
  };
  const structured = await codex.startThread(options).run('[[json {"answer": "42"}]]', { outputSchema: schema });
  assert.deepEqual(JSON.parse(structured.finalResponse), { answer: "42" });
  const asked = await codex.startThread(options).run("[[show /text/format/schema]]", { outputSchema: schema });
  assert.deepEqual(JSON.parse(asked.finalResponse), schema);

  // a failed turn
  await assert.rejects(codex.startThread(options).run("[[status 401]]"), /401/);

  // abort signal
  const controller = new AbortController();
  const aborted = codex.startThread(options);
  const stream = await aborted.runStreamed("[[run touch ready; sleep 49]]", { signal: controller.signal });
  const began = Date.now();
  await assert.rejects(async () => {
    for await (const event of stream.events) {
      if (event.type === "item.started") controller.abort();
    }
  }, { name: "AbortError" });
  assert.ok(Date.now() - began < 20_000);
  // The thread is free again, and knows what was said.
  const after = await codex.resumeThread(aborted.id, options).run("and now?");
  assert.match(after.finalResponse, /user messages so far: 2/);

  console.log("@openai/codex-sdk: run, runStreamed, resumeThread, output schema, abort");
} finally {
  rmSync(work, { recursive: true, force: true });
}
