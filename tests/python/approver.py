import json, os, sys, grpc
from codex.sidecar.v1 import codex_service_pb2 as api, codex_service_pb2_grpc as stubs

OPTIONS = {"approval_policy": "APPROVAL_POLICY_ON_REQUEST", "working_directory": os.getcwd(), "dynamic_tools": [
    {"name": "price_of", "description": "The price of an article",
     "input_schema": '{"type": "object", "properties": {"article": {"type": "string"}}}'}]}

def answer(asked):
    if asked.HasField("tool_call"):
        article = json.loads(asked.tool_call.arguments_json)["article"]
        return {"tool_call": {"content": [{"text": f"A {article} is 30 euros."}], "success": True}}
    what = asked.command_approval.command or [it.path for it in asked.file_change_approval.changes]
    yes = input(f"Codex wants: {what}\nAllow it? [y/N] ") == "y"
    return {"approval": {"decision": "APPROVAL_DECISION_" + ("ACCEPT" if yes else "DECLINE")}}

codex = stubs.CodexServiceStub(grpc.insecure_channel(os.environ.get("CODEX_SIDECAR_ADDR", "127.0.0.1:50061")))
for response in codex.RunTurn(api.RunTurnRequest(inputs=[{"text": sys.argv[1]}], ephemeral=True,
        thread_options=OPTIONS, question_policy="QUESTION_POLICY_ASK")):
    asked = response.event.request_raised.request
    if asked.WhichOneof("kind") in ("tool_call", "command_approval", "file_change_approval"):
        codex.AnswerRequest(api.AnswerRequestRequest(
            turn_id=response.event.turn_id, request_id=asked.request_id, **answer(asked)))
print(response.event.turn_completed.final_response)
