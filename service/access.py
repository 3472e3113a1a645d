"""Who may ask: the Host that was addressed, and the key that was shown (pure ASGI).

Without keys the service trusts whoever reaches it, and it can be reached from this machine only. A web page
elsewhere could still reach it by pointing its own name at 127.0.0.1 (DNS rebinding): its Host gives it away.
"""

import hmac
from collections.abc import Collection
from enum import IntEnum

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.observability import refuse
from service.problems import RequestError
from service.settings import Settings, is_loopback

_QUESTIONS = frozenset({"/embed", "/search", "/classify"})  # POST, because of their size; they change nothing


class Right(IntEnum):
    """What a key allows; each includes those before it."""

    READ = 1
    WRITE = 2
    ADMIN = 3


def needed(method: str, path: str) -> Right:
    """Return the right that a request needs. Whatever is not known to be harmless needs more."""
    if path == "/admin" or path.startswith("/admin/"):
        return Right.ADMIN
    if method in ("GET", "HEAD") or (method == "POST" and path in _QUESTIONS):
        return Right.READ
    return Right.WRITE


class Access:
    """Refuses foreign Hosts (421), missing or unknown keys (401) and too small rights (403)."""

    def __init__(self, app: ASGIApp, settings: Settings, open_paths: Collection[str]) -> None:
        self.app = app
        self.open_paths = frozenset(open_paths)
        self.hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self.checks_host = bool(self.hosts) or not (settings.has_keys or not is_loopback(settings.host))
        pairs = (
            (Right.READ, settings.read_key),
            (Right.WRITE, settings.write_key),
            (Right.ADMIN, settings.admin_key),
        )
        self.keys = [(right, key.get_secret_value().encode()) for right, key in pairs if key is not None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; see the class."""
        if scope["type"] != "http" or (refusal := self._refusal(scope)) is None:
            await self.app(scope, receive, send)
        else:
            await refuse(refusal, scope, receive, send)

    def _refusal(self, scope: Scope) -> RequestError | None:
        if self.checks_host and not self._is_ours(Headers(scope=scope).getlist("host")):
            return RequestError(
                "host_not_allowed", "expected Host to be localhost or one of LOOKALIKE_ALLOWED_HOSTS, got another"
            )
        if scope["path"] in self.open_paths:
            return None
        need = needed(scope["method"], scope["path"])
        if self.keys:
            return self._without_right(scope, need)
        if need < Right.ADMIN:
            return None
        return RequestError(
            "key_insufficient", "expected LOOKALIKE_ADMIN_KEY to be configured for this, got a service without keys"
        )

    def _without_right(self, scope: Scope, need: Right) -> RequestError | None:
        shown = [value for name, value in scope["headers"] if name == b"authorization"]
        if not shown:
            return RequestError("key_missing", "expected a key, got none; send it as Authorization: Bearer <key>")
        right = self._right_of(shown)
        if right is None:
            return RequestError("key_wrong", "expected a known key as Authorization: Bearer <key>, got another")
        if right < need:
            return RequestError("key_insufficient", f"expected a key with the right to {need.name.lower()}")
        return None

    def _is_ours(self, hosts: list[str]) -> bool:
        if len(hosts) != 1:
            return False
        host = hosts[0].lower()
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        return is_loopback(name) or name in self.hosts or host in self.hosts

    def _right_of(self, shown: list[bytes]) -> Right | None:
        """Return the largest right of the key shown. Every key is compared, on bytes, in constant time."""
        scheme, _, key = shown[0].partition(b" ")
        if len(shown) != 1 or scheme.lower() != b"bearer":
            return None
        found = [right for right, known in self.keys if hmac.compare_digest(known, key.strip())]
        return max(found, default=None)
