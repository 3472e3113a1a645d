"""The composition root: settings and a retriever become an ASGI application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response

from index.errors import LookalikeError
from index.retriever import Retriever
from service import items, operations, pages, problems, routes
from service.access import Access
from service.engine import Engine
from service.limits import Admission, BodyLimit
from service.observability import Observed, trace_of
from service.settings import Settings

_HTTP_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
_HTTP_SENTENCES = {
    "bad_request": "expected a well-formed request",
    "not_found": "there is no such path; the interface is described at /docs",
    "method_not_allowed": "expected one of the methods that Allow names",
}


def create_app(settings: Settings, retriever: Retriever | None = None) -> FastAPI:
    """Build the application.

    Args:
        settings: validated.
        retriever: served as it is and not closed; None loads the settings' encoder and bank at start-up, and
            until both are warm the service is alive but not ready.
    """
    engine = Engine(settings, retriever)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(engine.start())
        try:
            yield
        finally:
            starting.cancel()
            await engine.stop()

    app = FastAPI(
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
        middleware=[  # the first is the outermost
            Middleware(Observed),
            Middleware(BodyLimit, max_bytes=settings.max_body_bytes),
            Middleware(Access, settings=settings, open_paths=pages.PATHS | {"/livez", "/readyz"}),
            Middleware(Admission, max_concurrency=settings.max_concurrency, deadline_s=settings.deadline_s),
        ],
    )
    app.state.engine = engine
    for router in (routes.router, items.router, operations.router):
        app.include_router(router)
    pages.add_pages(app)
    app.add_exception_handler(problems.RequestError, _refused)
    app.add_exception_handler(LookalikeError, _failed)
    app.add_exception_handler(HTTPException, _no_route)
    return app


def _answer(request: Request, error: problems.RequestError) -> Response:
    trace = trace_of(request.scope)
    trace.code = error.code
    return problems.response(error, trace.request_id)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, problems.RequestError)  # noqa: S101 - Starlette dispatches by this very class
    return _answer(request, error)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, LookalikeError)  # noqa: S101
    return _answer(request, problems.as_request_error(error))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    code = _HTTP_CODES.get(error.status_code, "bad_request")
    return _answer(request, problems.RequestError(code, _HTTP_SENTENCES[code], headers=error.headers))
