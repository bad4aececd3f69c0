# An ASGI application as uvicorn runs it: what it sees of a request, and the size
# of its body.
import json


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        event = await receive()
        size += len(event.get("body", b""))
        more = event.get("more_body", False)
    headers = {k.decode(): v.decode() for k, v in scope["headers"]}
    seen = {"host": headers["host"], "peer": headers.get("pilot-peer-name"), "client": scope["client"][0], "size": size}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(seen).encode()})
