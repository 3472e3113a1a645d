"""Answers to JSON, each with the encoder and the bank that made it.

orjson writes a float32 array without a detour through Python floats, each value as the shortest decimal that
reads back to the same 32 bits: 0.1, not 0.10000000149011612. That is half the bytes, and nothing is lost.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from starlette.responses import Response

from index.items import Item
from index.retriever import Classification, Neighbor, Retriever
from service.negotiation import JSON


def answer(document: Mapping[str, Any]) -> Response:
    """Return a document as JSON."""
    return Response(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON)


def identity(retriever: Retriever) -> dict[str, Any]:
    """Return what every answer from the bank begins with."""
    bank = retriever.bank
    return {
        "encoder": retriever.encoder.sha256,
        "bank": {"generation": bank.generation, "count": bank.count},
    }


def item(found: Item) -> dict[str, Any]:
    """Return one item."""
    return {"id": found.id, "label": found.label, "uri": found.uri, "metadata": dict(found.metadata)}


def neighbor(found: Neighbor, *, metadata: bool) -> dict[str, Any]:
    """Return one neighbour, with its metadata and vector where they were asked for."""
    described: dict[str, Any] = {
        "id": found.item.id,
        "similarity": np.float32(found.similarity),
        "label": found.item.label,
        "uri": found.item.uri,
    }
    if metadata:
        described["metadata"] = dict(found.item.metadata)
    if found.vector is not None:
        described["vector"] = found.vector
    return described


def classification(found: Classification) -> dict[str, Any]:
    """Return the label of one query and the votes behind it."""
    return {
        "label": found.label,
        "confidence": found.confidence,
        "abstained": found.abstained,
        "scores": [{"label": label, "score": score} for label, score in found.scores],
        "votes": [
            {"id": vote.id, "label": vote.label, "similarity": np.float32(vote.similarity), "weight": vote.weight}
            for vote in found.votes
        ],
    }
