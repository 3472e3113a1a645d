"""The bank's items, one by one and in pages, and their thumbnails.

A thumbnail is decoded and encoded anew, so no byte of the file reaches a client. Its path comes from the item's
uri, and only a regular file that really lies under the images folder, links resolved, is ever opened.
"""

import stat
from pathlib import Path

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from index import images
from index.errors import ImageError
from service import openapi, schemas
from service.answers import answer, identity, item
from service.engine import Engine
from service.negotiation import accepts_json, choose
from service.problems import RequestError
from service.queries import from_parameters

THUMBNAIL_SIDE = 256  # px; large enough for the page's grid on a dense screen
_MAX_AGE_S = 3600

router = APIRouter(tags=["items"])


@router.get(
    "/items",
    dependencies=[Depends(accepts_json)],
    **openapi.lookup(
        schemas.ItemsAnswer, refusals=("not_acceptable", "request_invalid"), parameters=schemas.ItemsQuery
    ),
)
async def page(request: Request) -> Response:
    """List items in the order of their ids, a page at a time."""
    engine: Engine = request.app.state.engine
    retriever = engine.retriever()
    query = from_parameters(request.query_params, schemas.ItemsQuery)

    def list_page() -> Response:
        # One more than asked for tells whether another page follows.
        found = retriever.bank.page(label=query.label, limit=query.limit + 1, after=query.after)
        shown = found[: query.limit]
        following = shown[-1].id if len(found) > len(shown) else None
        return answer({**identity(retriever), "items": [item(each) for each in shown], "next": following})

    return await engine.run(list_page)


@router.get(
    "/items/{id:path}/thumbnail",
    **openapi.lookup(
        None, refusals=("not_acceptable", "item_not_found", "thumbnail_not_found"), media_type="image/webp"
    ),
)
async def thumbnail(request: Request, id: str) -> Response:  # noqa: A002 - the interface's word
    """Show an item's picture, small and without metadata."""
    choose(request.headers.get("accept"), ("image/webp",))
    engine: Engine = request.app.state.engine
    retriever = engine.retriever()

    def read() -> Response:
        path = _confined(engine.settings.images, retriever.bank.get([id])[0].uri)
        status = path.stat()
        etag = f'"{THUMBNAIL_SIDE:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'
        headers = {"ETag": etag, "Cache-Control": f"private, max-age={_MAX_AGE_S}"}
        if etag in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        limits = engine.settings.image_limits
        if status.st_size > limits.max_bytes:
            raise RequestError("thumbnail_not_found", "the item's picture is larger than this service reads")
        try:
            small = images.thumbnail(path.read_bytes(), THUMBNAIL_SIDE, limits)
        except ImageError:
            raise RequestError("thumbnail_not_found", "the item's picture cannot be read any more") from None
        return Response(small, media_type="image/webp", headers=headers)

    return await engine.run(read)


@router.get(
    "/items/{id:path}",
    dependencies=[Depends(accepts_json)],
    **openapi.lookup(schemas.ItemAnswer, refusals=("not_acceptable", "item_not_found")),
)
async def one(request: Request, id: str) -> Response:  # noqa: A002 - the interface's word
    """Describe one item; its id may contain slashes."""
    engine: Engine = request.app.state.engine
    retriever = engine.retriever()

    def describe() -> Response:
        return answer({**identity(retriever), "item": item(retriever.bank.get([id])[0])})

    return await engine.run(describe)


def _confined(root: Path | None, uri: str | None) -> Path:
    """Return the regular file under `root` that `uri` names.

    Raises:
        RequestError: there is none; what lies outside is not told apart from what is missing.
    """
    if root is None:
        raise RequestError("thumbnail_not_found", "this service shows no pictures; start it with --images FOLDER")
    missing = RequestError("thumbnail_not_found", "the item's picture is not in the images folder")
    if not uri:
        raise missing
    try:
        home = root.resolve(strict=True)
        path = (home / uri).resolve(strict=True)
        regular = stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError, RuntimeError):  # missing, NUL in the name, a loop of links
        raise missing from None
    if not regular or not path.is_relative_to(home):
        raise missing
    return path
