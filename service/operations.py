"""What operators and probes ask: alive, ready, and what is served."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service import openapi, schemas
from service.answers import answer, identity
from service.engine import Engine
from service.negotiation import accepts_json

router = APIRouter(tags=["operations"], dependencies=[Depends(accepts_json)])

_PACKAGES = (
    "lookalike", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "faiss-cpu", "faiss-gpu", "fastapi",
)  # fmt: skip
_LIMITS = (
    "max_body_bytes", "max_pictures", "max_queries", "max_k", "max_neighbors", "max_pixels", "max_side", "min_side",
    "max_aspect", "max_concurrency", "deadline_s",
)  # fmt: skip


@router.get("/livez", **openapi.lookup(schemas.Health, refusals=("not_acceptable",), busy=False))
async def alive() -> Response:
    """Tell that the process answers; nothing more is checked."""
    return answer({"status": "alive"})


@router.get("/readyz", **openapi.lookup(schemas.Health, refusals=("not_acceptable", "not_ready"), busy=False))
async def ready(request: Request) -> Response:
    """Tell that questions can be answered: the encoder's canary passed, the bank is open, both are warm."""
    engine: Engine = request.app.state.engine
    engine.retriever()
    return answer({"status": "ready"})


@router.get("/info", **openapi.lookup(schemas.Info, refusals=("not_acceptable",)))
async def info(request: Request) -> Response:
    """Describe the encoder, the bank, the limits and the defaults."""
    engine: Engine = request.app.state.engine
    retriever = engine.retriever()
    settings, protocol = engine.settings, retriever.protocol

    def describe() -> Response:
        served = identity(retriever)
        served["bank"] |= {"labels": retriever.bank.label_counts(), "tuning": retriever.bank.manifest.tuning}
        return answer(
            served
            | {
                "encoder_spec": json.loads(retriever.encoder.spec.to_json()),
                "versions": _versions(),
                "limits": {name: getattr(settings, name) for name in _LIMITS},
                "defaults": {
                    "search": {"k": schemas.SearchOptions().k},
                    "classify": {
                        "k": protocol.k,
                        "temperature": protocol.temperature,
                        "votes": schemas.ClassifyOptions().votes,
                    },
                },
            }
        )

    return await engine.run(describe)


def _versions() -> dict[str, Any]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # of the CPU and the GPU engine one is there
    return found
