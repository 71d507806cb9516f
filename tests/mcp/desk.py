"""An MCP server that asks its user, or may change something, as its tool's name says.

    python3 desk.py
"""

import json, sys

ASKS = {
    "form": {"mode": "form", "message": "Who are you?", "requestedSchema": {
        "type": "object", "required": ["name"],
        "properties": {"name": {"type": "string", "minLength": 2}, "age": {"type": "integer"}}}},
    "address": {"mode": "url", "message": "Log in", "url": "https://example.test/login",
                "elicitationId": "e1"},
}
calls = {}

def send(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

def text(id, value):
    send(id=id, result={"content": [{"type": "text", "text": json.dumps(value)}]})

for line in sys.stdin:
    message = json.loads(line)
    method, params, id = message.get("method"), message.get("params") or {}, message.get("id")
    if method == "initialize":
        send(id=id, result={"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                            "serverInfo": {"name": "desk", "version": "1"}})
    elif method == "tools/list":
        schema = {"type": "object", "properties": {}}
        reads = {"annotations": {"readOnlyHint": True}}
        tools = [{"name": name, "description": name, "inputSchema": schema} for name in [*ASKS, "ring"]]
        send(id=id, result={"tools": [{**tool, **(reads if tool["name"] in ASKS else {})} for tool in tools]})
    elif method == "tools/call" and params["name"] in ASKS:
        calls[len(calls) + 100] = id
        send(id=len(calls) + 99, method="elicitation/create", params=ASKS[params["name"]])
    elif method == "tools/call":
        text(id, "rang")
    elif method is None and id in calls:
        text(calls[id], message["result"])
    elif id is not None:
        send(id=id, result={})
