"""Bounded request heads: uvicorn's fast parser would read a header of any size, for as long as it takes.

The body is limited in `limits`, but a head never gets there: it is gathered in memory before the application
hears of it (50 MB of one header cost five seconds of CPU). So size and time are bounded where bytes arrive.
"""

import asyncio
import uuid

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.problems import MEDIA_TYPE, RequestError, response

MAX_HEAD_BYTES = 64 * 1024  # checked after each read, so one read (256 KiB) more may be held for a moment
_LINGER_S = 1.0


class BoundedHeads(HttpToolsProtocol):
    """HTTP/1.1 that refuses heads which are too large (431), ends those that stall, and declines upgrades."""

    _head_bytes: int | None = 0  # since the connection or the request began; None once the head is complete
    head_deadline_s = 10.0
    _refused = False
    _replaying = False
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._set_stall(None)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin to wait for the head of the next request on this connection."""
        if self._replaying:
            return
        super().on_message_begin()
        if self._head_bytes is None:
            self._await_head()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the path."""
        if not self._replaying:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        if not self._replaying:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Let the request go on: from here `limits` counts."""
        if self._replaying:
            return
        self._head_bytes = None
        self._set_stall(None)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Take the end of the body; where an upgrade was offered, the parser says so before any of it came."""
        if self._replaying or not self.parser.should_upgrade():
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what came, and refuse a head that is still not complete when it is too large."""
        if self._refused:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offered:
            self._decline_upgrade()
            if rest := data[offered.args[0] :]:
                self.data_received(rest)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        else:
            self._check_head(len(data))

    def _decline_upgrade(self) -> None:
        """Go on in HTTP/1.1 with a client that offered h2c or WebSocket (Java's does, on every first request).

        The parser drops the body of such a request. A fresh one, told only how that body is framed, reads it.
        """
        framing = [header for header in self.headers if header[0] in (b"content-length", b"transfer-encoding")]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in framing)
        self.parser = httptools.HttpRequestParser(self)
        self._replaying = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + lines + b"\r\n")
        self._replaying = False

    def _check_head(self, received: int) -> None:
        if self._head_bytes is None or self.transport.is_closing():
            return
        self._head_bytes += received
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._set_stall(self.loop.call_later(self.head_deadline_s, self.transport.close))

    def _set_stall(self, timer: asyncio.TimerHandle | None) -> None:
        if self._stall is not None:
            self._stall.cancel()
        self._stall = timer

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form that every refusal has."""
        self._answer("400 Bad Request", RequestError("bad_request", f"expected HTTP/1.1. {msg}"))
        self.transport.close()

    def _refuse(self) -> None:
        what = f"expected at most {MAX_HEAD_BYTES:,} bytes of path and headers, got more"
        self._answer("431 Request Header Fields Too Large", RequestError("head_too_large", what))
        self.transport.write_eof()
        # Closed a moment later: bytes that nobody read would reset the connection, and the answer would be lost.
        self._refused = True
        self._set_stall(self.loop.call_later(_LINGER_S, self.transport.close))

    def _answer(self, status: str, error: RequestError) -> None:
        request_id = uuid.uuid4().hex
        body = bytes(response(error, request_id).body)
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
