"""What can be known of a request afterwards: its id, one JSON line, and milliseconds a stage.

The line names the route, never the path or anything else that the client sent; an id of the client's is
taken only if it could not break a log.
"""

import json
import logging
import re
import sys
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import problems

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_CLIENT_GONE = 499  # nobody reads the answer; the number nginx uses for it
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}

_log = logging.getLogger(__name__)


@dataclass
class Trace:
    """One request as it goes through the service.

    Attributes:
        request_id: the caller's, if sane, else ours.
        stages: milliseconds by stage ("decode", "embed", "search").
        code: the problem's code, when the request was refused.
    """

    request_id: str
    stages: dict[str, float] = field(default_factory=dict)
    code: str | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - started) * 1e3
            self.stages[name] = round(self.stages.get(name, 0.0) + spent, 3)


def trace_of(scope: Scope) -> Trace:
    """Return the trace that `Observed` laid into the request's state."""
    trace: Trace = scope["state"]["trace"]
    return trace


async def refuse(error: problems.RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with a problem, from anywhere in the stack."""
    trace = trace_of(scope)
    trace.code = error.code
    await problems.response(error, trace.request_id)(scope, receive, send)


class Observed:
    """The outermost layer: ids in and out, security headers, one log line, and bugs become 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; see the class."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # routed as GET; the server leaves the body out
            scope = {**scope, "method": "GET"}
        asked = Headers(scope=scope).get("x-request-id", "")
        trace = Trace(asked if _SANE_ID.fullmatch(asked) else uuid.uuid4().hex)
        scope.setdefault("state", {})["trace"] = trace
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = trace.request_id
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        started = time.perf_counter()
        try:
            await self.app(scope, receive, send_marked)
        except ClientDisconnect:
            status, trace.code = _CLIENT_GONE, "client_gone"
        except Exception:
            _log.exception("unexpected", extra={"fields": {"request_id": trace.request_id}})
            if status:
                raise  # the answer is half sent: the server must cut the connection
            bug = problems.RequestError("internal_error", "the service failed; its log knows the request id")
            await refuse(bug, scope, receive, send_marked)
        finally:
            _log_line(scope, trace, status, (time.perf_counter() - started) * 1e3)


def _log_line(scope: Scope, trace: Trace, status: int, took_ms: float) -> None:
    route = getattr(scope.get("route"), "path", None)
    _log.info(
        "request",
        extra={
            "fields": {
                "request_id": trace.request_id,
                "method": scope["method"] if scope["method"].isalpha() else "?",
                "route": route or "-",
                "status": status,
                "code": trace.code,
                "ms": round(took_ms, 3),
                "stages": trace.stages,
            }
        },
    )


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line)


def log_to_stdout() -> None:
    """Send every log line to standard output as JSON; called by the command line only, never on import."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
