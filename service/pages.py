"""The search page, the interface's description, and their files: plain HTML, CSS and ES modules.

A fixed table of files, read once: no path of a request ever becomes a path on the disk.
"""

import hashlib
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service import openapi
from service.negotiation import JSON

_WEB = Path(__file__).parent / "web"
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/api.js": ("api.js", "text/javascript; charset=utf-8"),
    "/view.js": ("view.js", "text/javascript; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
PATHS = frozenset({*_FILES, "/openapi.json"})


def add_pages(app: FastAPI) -> None:
    """Add a route for each file, and for the OpenAPI document of the routes that are there already."""
    described = openapi.document(app)
    for path, (name, media_type) in _FILES.items():
        _add(app, path, (_WEB / name).read_bytes(), media_type)
    _add(app, "/openapi.json", described, JSON)


def _add(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}

    async def serve(request: Request) -> Response:
        if etag in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    app.router.routes.append(Route(path, serve, methods=["GET"], include_in_schema=False))
