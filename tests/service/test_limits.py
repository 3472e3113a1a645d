"""What a request may cost: admission, deadlines and draining, at the level where they are enforced."""

import asyncio
import socket
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from service.limits import Admission, BodyLimit
from service.observability import Trace

Serve = Callable[..., TestClient]


class Exchange:
    """One request at the ASGI level: messages in, messages out."""

    def __init__(
        self, *chunks: bytes, headers: dict[str, str] | None = None, endless: bool = False, stalls: bool = False
    ) -> None:
        self.scope: Scope = {
            "type": "http", "method": "POST", "path": "/embed", "state": {"trace": Trace("t")},
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
        }  # fmt: skip
        self.chunks = list(chunks)
        self.endless = endless
        self.stalls = stalls
        self.received = 0
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if self.endless:
            self.received += 1024
            return {"type": "http.request", "body": b"x" * 1024, "more_body": True}
        if not self.chunks:
            await asyncio.Event().wait()  # a client that never sends the rest
        chunk = self.chunks.pop(0)
        self.received += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": self.stalls or bool(self.chunks)}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode().lower(): value.decode() for name, value in self.sent[0]["headers"]}


async def answer(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await answer(scope, receive, send)


def test_more_requests_than_there_is_room_for_get_429_and_probes_do_not():
    async def scenario() -> None:
        gate = asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            await gate.wait()
            await answer(scope, receive, send)

        admission = Admission(slow, max_concurrency=2, deadline_s=60)
        inside = [Exchange() for _ in range(2)]
        tasks = [asyncio.create_task(admission(e.scope, e.receive, e.send)) for e in inside]
        await asyncio.sleep(0)
        outside, probe = Exchange(), Exchange()
        await admission(outside.scope, outside.receive, outside.send)
        assert outside.status == 429
        assert int(outside.headers["retry-after"]) >= 1
        probe.scope["path"] = "/livez"
        tasks.append(asyncio.create_task(admission(probe.scope, probe.receive, probe.send)))
        gate.set()
        await asyncio.gather(*tasks)
        assert [e.status for e in (*inside, probe)] == [200, 200, 200]
        late = Exchange()
        await admission(late.scope, late.receive, late.send)
        assert late.status == 200

    asyncio.run(scenario())


def test_an_endless_body_is_counted_refused_and_cut_off():
    exchange = Exchange(endless=True, headers={"Transfer-Encoding": "chunked"})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        from service.observability import refuse
        from service.problems import RequestError

        try:
            await read_all(scope, receive, send)
        except RequestError as error:
            await refuse(error, scope, receive, send)

    asyncio.run(BodyLimit(app, 10_000)(exchange.scope, exchange.receive, exchange.send))
    assert exchange.status == 413
    assert exchange.headers["connection"] == "close"
    assert exchange.received <= 5 * 10_000
    assert not exchange.sent[-1].get("more_body")


def test_a_refused_upload_is_drained_so_that_its_client_hears_why():
    exchange = Exchange(b"x" * 600, b"x" * 600, headers={"Content-Length": "1200"})
    asyncio.run(BodyLimit(answer, 1000)(exchange.scope, exchange.receive, exchange.send))
    assert (exchange.status, exchange.received) == (413, 1200)


def test_a_client_that_waits_for_permission_is_answered_at_once():
    exchange = Exchange(headers={"Content-Length": "1200", "Expect": "100-continue"})
    asyncio.run(BodyLimit(answer, 1000)(exchange.scope, exchange.receive, exchange.send))
    assert (exchange.status, exchange.received) == (413, 0)


@pytest.mark.parametrize("length", ["-1", "1e3", "٣", "9" * 100])
def test_a_content_length_that_is_no_number_is_refused(length: str):
    exchange = Exchange(headers={"Content-Length": length} if length.isascii() else {})
    if not length.isascii():
        exchange.scope["headers"] = [(b"content-length", length.encode())]
    asyncio.run(BodyLimit(answer, 1000)(exchange.scope, exchange.receive, exchange.send))
    assert exchange.status in (400, 413)


@pytest.mark.parametrize(("stalls", "status"), [(False, 504), (True, 408)])
def test_a_passed_deadline_is_504_and_a_slow_upload_408(stalls: bool, status: int):
    async def never(_: Scope, receive: Receive, __: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await asyncio.Event().wait()

    exchange = Exchange(b"x", b"y", headers={"Transfer-Encoding": "chunked"}, stalls=stalls)
    stack = BodyLimit(Admission(never, max_concurrency=1, deadline_s=0.01), 1000)
    asyncio.run(stack(exchange.scope, exchange.receive, exchange.send))
    assert exchange.status == status


def test_work_past_the_deadline_gets_504_and_the_service_goes_on(serve: Serve):
    client = serve(deadline_s=0.05)
    out = BytesIO()
    Image.new("RGB", (7000, 7000), "red").save(out, "PNG", compress_level=1)
    big: dict[str, Any] = {"content": out.getvalue(), "headers": {"Content-Type": "image/png"}}
    answered = client.post("/embed", **big)
    assert (answered.status_code, answered.json()["code"]) == (504, "deadline_exceeded")
    assert client.get("/readyz").status_code == 200


def test_a_head_that_stalls_ends_its_connection_and_another_is_served():
    import uvicorn

    from service.heads import BoundedHeads

    class Impatient(BoundedHeads):
        head_deadline_s = 0.05

    async def scenario() -> tuple[bytes, bytes, bytes]:
        config = uvicorn.Config(answer, http=Impatient, lifespan="off", log_config=None, port=0)
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve([listener]))
            address = listener.getsockname()[:2]
            heard = []
            for sent in (b"", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(sent)
                heard.append(await reader.read())
                writer.close()
            server.should_exit = True
            await serving
            return heard[0], heard[1], heard[2]

    silent, stalled, whole = asyncio.run(scenario())
    assert (silent, stalled) == (b"", b"")
    assert whole.startswith(b"HTTP/1.1 200 ")
