"""python -m service --encoder encoder.onnx --bank bank/: serve; or `openapi`: print the interface.

Whatever is wrong (a missing file, another encoder's bank, a port in use) is one sentence and exit status 2,
before the first connection is taken.
"""

import argparse
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from index.errors import LookalikeError, SettingsError

if TYPE_CHECKING:
    from service.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = _parser().parse_args(argv)
    try:
        if given.command == "openapi":
            return _print_openapi()
        return _serve(_settings(given))
    except LookalikeError as error:
        print(f"service: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serve visual search over HTTP. Every option is also an environment variable, "
        "LOOKALIKE_<NAME>; service/settings.py lists them all, with keys and limits.",
    )
    parser.add_argument("command", nargs="?", choices=("serve", "openapi"), default="serve",
                        help="serve (default), or print the OpenAPI document")  # fmt: skip
    parser.add_argument("--encoder", type=Path, metavar="FILE", help="the encoder, encoder.onnx")
    parser.add_argument("--bank", type=Path, metavar="FOLDER", help="the memory bank that it built")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="where the pictures lie, for thumbnails")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1; others need keys)")
    parser.add_argument("--port", type=int, help="port to listen on (default 8000; 0 takes a free one)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the cores this process may use)")
    parser.add_argument("--insecure", action="store_true", default=None,
                        help="serve other addresses than loopback without keys")  # fmt: skip
    return parser


def _settings(given: argparse.Namespace) -> "Settings":
    """Read the environment, let the options win."""
    from pydantic import ValidationError

    from service.settings import Settings

    options = {name: value for name, value in vars(given).items() if name != "command" and value is not None}
    try:
        return Settings(**options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{where}: {message}" if where else message) from None
    except ValueError as error:  # pydantic-settings, for a list in the environment that is not JSON
        raise SettingsError(f"{error}; lists are given as JSON") from None


def _print_openapi() -> int:
    from service.app import create_app
    from service.openapi import document
    from service.settings import Settings

    sys.stdout.buffer.write(document(create_app(Settings.model_construct())))
    return 0


def _serve(settings: "Settings") -> int:
    # A stop while the bank is opened ends at once; while serving, uvicorn drains first and then comes here.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    if settings.images is not None and not settings.images.is_dir():
        raise SettingsError(f"expected a folder of pictures at {settings.images}, got none; correct --images")
    with _bind(settings.host, settings.port) as listener:
        import uvicorn

        from service.app import create_app
        from service.engine import load
        from service.heads import BoundedHeads
        from service.observability import log_to_stdout

        retriever = load(settings)
        try:
            log_to_stdout()
            config = uvicorn.Config(
                create_app(settings, retriever),
                http=BoundedHeads,
                ws="none",
                loop="uvloop" if sys.platform != "win32" else "asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=settings.drain_s,
            )
            listener.listen(config.backlog)  # from here on a connection waits instead of being refused
            print(_greeting(settings, listener, retriever.bank.count), file=sys.stderr, flush=True)
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            retriever.bank.close()
    return 0


def _greeting(settings: "Settings", listener: socket.socket, count: int) -> str:
    from service.settings import is_loopback

    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    guarded = settings.has_keys or is_loopback(settings.host)
    whom = "" if guarded else ", to everyone, without keys"
    return f"Lookalike serves {count:,} items at {url}{whom} (Ctrl-C stops it)"


def _bind(host: str, port: int) -> socket.socket:
    """Take the address now, so that a port in use is told before anything is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingsError(f"expected an address of this machine, got {host}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"expected {host}:{port} to be free, got: {error.strerror}; stop what listens there, or pass --port"
        ) from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
