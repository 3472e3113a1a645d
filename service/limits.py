"""What a request may cost, enforced before anything is parsed (pure ASGI).

A check inside a route is too late: the body has arrived by then. The declared length is refused at once, a
chunked body is counted as it comes. A refused upload is drained for a moment, because closing a connection
with unread bytes resets it, and the client would lose the answer that tells it why.
"""

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.observability import refuse
from service.problems import RequestError

_LINGER_S = 1.0
_PROBES = frozenset({"/livez", "/readyz"})  # answered however busy the service is


class Upload:
    """The body of one request as it comes: counted, limited, and drained after a refusal."""

    def __init__(self, receive: Receive, headers: Headers, max_bytes: int) -> None:
        self.complete = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self._receive = receive
        self._received = 0
        self._max_bytes = max_bytes
        self._waits = headers.get("expect", "").lower() == "100-continue"

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            RequestError: `body_too_large`, as soon as the bytes so far are too many.
        """
        message = await self._count()
        if self._received > self._max_bytes:
            raise RequestError("body_too_large", f"expected at most {self._max_bytes:,} bytes, got more")
        return message

    async def drain(self) -> None:
        """Read on for a moment, unless the client waits for permission to send."""
        if self._waits:
            return
        try:
            async with asyncio.timeout(_LINGER_S):
                while not self.complete and self._received <= 4 * self._max_bytes:
                    await self._count()
        except TimeoutError:
            pass

    async def _count(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)  # a disconnect has neither, and ends it too
        return message


class BodyLimit:
    """Refuses bodies over the limit (413), whatever they declare, and encoded ones (415)."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; see the class."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        upload = scope["state"]["upload"] = Upload(receive, headers, self.max_bytes)

        async def send_and_drain(message: Message) -> None:
            if upload.complete:
                await send(message)
            elif message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
                await send(message)
            else:
                await send({**message, "more_body": True})
                if not message.get("more_body", False):
                    await upload.drain()
                    await send({"type": "http.response.body", "body": b""})

        if (refusal := self._refusal(headers)) is None:
            await self.app(scope, upload.receive, send_and_drain)
        else:
            await refuse(refusal, scope, upload.receive, send_and_drain)

    def _refusal(self, headers: Headers) -> RequestError | None:
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            return RequestError(
                "unsupported_encoding", "expected a body as it is; send it without Content-Encoding"
            )
        declared = headers.get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()):
            return RequestError("bad_request", "expected Content-Length to be a number")
        if len(declared) > 18 or int(declared) > self.max_bytes:
            return RequestError("body_too_large", f"expected at most {self.max_bytes:,} bytes; send fewer pictures")
        return None


class Admission:
    """Refuses what there is no room for (429) and gives up what takes too long (504; 408 while uploading)."""

    def __init__(self, app: ASGIApp, max_concurrency: int, deadline_s: float) -> None:
        self.app = app
        self.max_concurrency = max_concurrency
        self.deadline_s = deadline_s
        self.in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; see the class."""
        if scope["type"] != "http" or scope["path"] in _PROBES:
            await self.app(scope, receive, send)
            return
        if self.in_progress >= self.max_concurrency:
            busy = RequestError("overloaded", f"{self.in_progress} requests are in progress; try again")
            await refuse(busy, scope, receive, send)
            return
        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        self.in_progress += 1
        try:
            async with asyncio.timeout(self.deadline_s) as deadline:
                await self.app(scope, receive, send_marked)
        except TimeoutError:
            if started or not deadline.expired():
                raise
            await refuse(self._late(scope["state"]["upload"]), scope, receive, send)
        finally:
            self.in_progress -= 1

    def _late(self, upload: Upload) -> RequestError:
        if upload.complete:
            return RequestError("deadline_exceeded", f"the answer took longer than {self.deadline_s:g} s")
        return RequestError("request_timeout", f"expected the whole body within {self.deadline_s:g} s")
