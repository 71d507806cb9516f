import os, time, uuid

import grpc
from codex.sidecar.v1 import codex_service_pb2 as api, codex_service_pb2_grpc, options_pb2
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status

LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED}
address = os.environ.get("CODEX_SIDECAR_ADDR", "127.0.0.1:50061")
channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
codex = codex_service_pb2_grpc.CodexServiceStub(channel)

def detail(error, kind):
    status = rpc_status.from_call(error)
    found = (it for it in (status.details if status else ()) if it.Is(kind.DESCRIPTOR))
    return next((kind.FromString(it.value) for it in found), kind())

def turn(context_id, text, timeout=600):
    request = api.RunTurnRequest(
        context_id=context_id, inputs=[options_pb2.UserInput(text=text)],
        thread_options={"working_directory": "/tmp", "skip_git_repo_check": True},
        request_id=str(uuid.uuid4()), disconnect_policy="DISCONNECT_POLICY_CONTINUE",
    )
    call, asked, turn_id, seen, end = codex.RunTurn, request, "", 0, time.monotonic() + timeout
    while True:
        try:
            for response in call(asked, timeout=max(0, end - time.monotonic()), wait_for_ready=True):
                event = response.event
                if event.turn_id != turn_id or event.sequence > seen:
                    turn_id, seen = event.turn_id, event.sequence
                    yield event
            return
        except grpc.RpcError as error:
            ours = detail(error, ErrorInfo).domain == "codex.sidecar"
            retry = detail(error, RetryInfo)
            if ours and retry.HasField("retry_delay"):  # refused: no turn has begun
                time.sleep(retry.retry_delay.ToTimedelta().total_seconds())
                call, asked = codex.RunTurn, request
            elif ours or error.code() not in LOST: raise
            elif turn_id:  # the connection is lost, and the turn runs on
                call = codex.AttachTurn
                asked = api.AttachTurnRequest(turn_id=turn_id, after_sequence=seen)

if __name__ == "__main__":
    for text in ("Remember the number 42.", "Which number was it?"):
        for event in turn("ticket-4711", text):
            print(event.agent_message_delta.text, end="", flush=True)
        if event.HasField("turn_failed"):
            raise RuntimeError(event.turn_failed.error.message)
        print(f"\n[{event.turn_completed.usage.output_tokens} tokens out]")
