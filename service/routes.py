"""The three questions: embed, search, classify."""

from dataclasses import replace
from typing import TypeVar

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import Response

from index.filters import Filter, parse_filter
from index.knn import KnnProtocol, Vectors
from index.retriever import Retriever
from service import negotiation, openapi, queries, schemas, vectors
from service.answers import answer, classification, identity, neighbor
from service.engine import Engine
from service.observability import Trace, trace_of
from service.problems import RequestError

router = APIRouter(tags=["questions"])
_json_only = [Depends(negotiation.accepts_json)]

Options = TypeVar("Options", bound=BaseModel)


@router.post("/embed", **openapi.question(schemas.EmbedRequest, schemas.NoOptions, schemas.EmbedAnswer))
async def embed(request: Request) -> Response:
    """Turn pictures into unit vectors; `Accept` chooses JSON, .npy or raw float32."""
    form = negotiation.choose(request.headers.get("accept"), (negotiation.JSON, vectors.NPY, vectors.RAW))
    engine: Engine = request.app.state.engine
    retriever = engine.retriever()
    asked = await queries.read(request, engine, schemas.NoOptions, schemas.EmbedRequest)
    found = await engine.embed(retriever, asked.pictures or (), trace_of(request.scope))
    if form == vectors.NPY:
        response = Response(vectors.to_npy(found), media_type=form)
    elif form == vectors.RAW:
        response = Response(vectors.to_raw(found), media_type=form)
    else:
        response = answer({"encoder": retriever.encoder.sha256, "dim": found.shape[1], "embeddings": found})
    response.headers["X-Encoder"] = retriever.encoder.sha256
    response.headers["X-Shape"] = f"{len(found)},{found.shape[1]}"
    return response


@router.post(
    "/search",
    dependencies=_json_only,
    **openapi.question(schemas.SearchRequest, schemas.SearchOptions, schemas.SearchAnswer),
)
async def search(request: Request) -> Response:
    """Find the nearest items of the bank, nearest first."""
    engine: Engine = request.app.state.engine
    retriever, trace = engine.retriever(), trace_of(request.scope)
    asked = await queries.read(
        request, engine, schemas.SearchOptions, schemas.SearchRequest, dim=retriever.encoder.dim
    )
    options = asked.options
    condition = _condition(options)
    _check_k(options.k, options.k, asked, engine)
    rows = await _vectors(asked, engine, retriever, trace)

    def find() -> Response:
        found = retriever.search(
            rows,
            k=options.k,
            exact=options.exact,
            effort=options.effort,
            min_similarity=options.min_similarity,
            filter=condition,
            exclude=asked.ids if options.exclude_query else None,
            with_vectors="vector" in options.include,
        )
        metadata = "metadata" in options.include
        results = [{"neighbors": [neighbor(each, metadata=metadata) for each in found_for]} for found_for in found]
        return answer({**identity(retriever), "results": results})

    with trace.stage("search"):
        return await engine.run(find)


@router.post(
    "/classify",
    dependencies=_json_only,
    **openapi.question(
        schemas.ClassifyRequest, schemas.ClassifyOptions, schemas.ClassifyAnswer, refusals=("bank_has_no_labels",)
    ),
)
async def classify(request: Request) -> Response:
    """Let the nearest labelled items vote, and show the votes."""
    engine: Engine = request.app.state.engine
    retriever, trace = engine.retriever(), trace_of(request.scope)
    asked = await queries.read(
        request, engine, schemas.ClassifyOptions, schemas.ClassifyRequest, dim=retriever.encoder.dim
    )
    options = asked.options
    condition = _condition(options)
    _check_k(options.k or 1, options.votes, asked, engine)
    protocol = _protocol(options, retriever.protocol)
    rows = await _vectors(asked, engine, retriever, trace)

    def ask() -> Response:
        found = retriever.classify(
            rows,
            protocol=protocol,
            votes=options.votes,
            min_confidence=options.min_confidence,
            exact=options.exact,
            effort=options.effort,
            filter=condition,
            exclude=asked.ids if options.exclude_query else None,
        )
        spoken = {"k": protocol.k, "temperature": protocol.temperature}
        return answer(
            {**identity(retriever), "protocol": spoken, "results": [classification(each) for each in found]}
        )

    with trace.stage("search"):
        return await engine.run(ask)


async def _vectors(asked: queries.Asked[Options], engine: Engine, retriever: Retriever, trace: Trace) -> Vectors:
    """Return the query vectors, float32 (B, D), whichever way they came."""
    if asked.pictures is not None:
        return await engine.embed(retriever, asked.pictures, trace)
    if asked.ids is not None:
        return await engine.run(retriever.vectors, asked.ids)
    if asked.vectors is None:
        raise RequestError("request_invalid", "expected exactly one of images, vectors and ids")
    return asked.vectors


def _check_k(k: int, shown: int, asked: queries.Asked[Options], engine: Engine) -> None:
    """Bound the work of one query, and the size of one answer."""
    settings, count = engine.settings, len(asked)
    if k > settings.max_k:
        raise RequestError("parameter_invalid", f"expected k of at most {settings.max_k}, got more")
    if shown * count > settings.max_neighbors:
        raise RequestError(
            "parameter_invalid",
            f"expected at most {settings.max_neighbors} neighbours in one answer, got {count} queries × {shown}",
        )


def _condition(options: schemas.SearchOptions | schemas.ClassifyOptions) -> Filter | None:
    return None if options.filter is None else parse_filter(options.filter)


def _protocol(options: schemas.ClassifyOptions, protocol: KnnProtocol) -> KnnProtocol:
    return replace(
        protocol,
        k=protocol.k if options.k is None else options.k,
        temperature=protocol.temperature if options.temperature is None else options.temperature,
    )
