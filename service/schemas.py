"""What is asked and what is answered. Unknown fields are refused, in both directions.

The request models validate JSON strictly ("5" is no number) and query parameters leniently (everything there
is text). The answer models are the interface's documentation; a test holds every answer to them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Include = Literal["metadata", "vector"]
_FILTER = (
    'conditions, ANDed: {"label": "cat"}, {"label": ["cat", "dog"]}, {"metadata.camera": "x100"}, '
    '{"metadata.year": {"gte": 2020, "lt": 2024}}; applied inside the search'
)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


# What is asked -------------------------------------------------------------------------------------------------


class NoOptions(_Model):
    """POST /embed has no options."""


class _Question(_Model):
    exact: Annotated[bool, Field(description="compare with every stored vector")] = False
    effort: Annotated[
        int | None, Field(ge=1, le=2**16, description="search effort; the bank's tuning when absent")
    ] = None
    filter: Annotated[dict[str, Any] | None, Field(description=_FILTER)] = None
    exclude_query: Annotated[
        bool, Field(description="for ids: the item is not its own neighbour; no effect on pictures and vectors")
    ] = True


class SearchOptions(_Question):
    """The options of POST /search."""

    k: Annotated[int, Field(ge=1, description="neighbours a query; more than the bank holds gives all")] = 10
    min_similarity: Annotated[
        float | None, Field(ge=-1, le=1, description="leave out neighbours less similar than this")
    ] = None
    include: Annotated[list[Include], Field(description="what to tell of each neighbour beyond its id")] = [
        "metadata"
    ]


class ClassifyOptions(_Question):
    """The options of POST /classify."""

    k: Annotated[
        int | None, Field(ge=1, description="neighbours that vote; the encoder's protocol when absent")
    ] = None
    temperature: Annotated[
        float | None, Field(ge=1e-3, le=1e3, description="of the vote; the encoder's protocol when absent")
    ] = None
    votes: Annotated[int, Field(ge=0, description="how many of the voting neighbours to return")] = 10
    min_confidence: Annotated[float, Field(ge=0, le=1, description="below it the answer is abstained")] = 0.0


Images = Annotated[list[str] | None, Field(min_length=1, description="pictures: base64, or data: URIs with base64")]


class EmbedRequest(NoOptions):
    """Pictures to embed."""

    images: Annotated[list[str], Field(min_length=1, description="pictures: base64, or data: URIs with base64")]


class _Queries(_Model):
    images: Images = None
    vectors: Annotated[
        list[list[float]] | None, Field(min_length=1, description="vectors of the encoder's dimension; normalised")
    ] = None
    ids: Annotated[list[str] | None, Field(min_length=1, description="ids of items: more like these")] = None


class SearchRequest(SearchOptions, _Queries):
    """Exactly one of images, vectors and ids, and options."""


class ClassifyRequest(ClassifyOptions, _Queries):
    """Exactly one of images, vectors and ids, and options."""


class ItemsQuery(_Model):
    """A page of the bank."""

    label: Annotated[str | None, Field(description="only items of this label")] = None
    limit: Annotated[int, Field(ge=1, le=1000, description="most items to return")] = 100
    after: Annotated[str | None, Field(description="the last id of the page before")] = None


# What is answered ----------------------------------------------------------------------------------------------


class BankState(_Model):
    """The bank that answered: its generation changes with its content."""

    generation: int
    count: int


class _Answer(_Model):
    encoder: Annotated[str, Field(description="SHA-256 of the encoder's file", pattern="^[0-9a-f]{64}$")]


class EmbedAnswer(_Answer):
    """Unit vectors, in the order of the pictures."""

    dim: int
    embeddings: list[list[float]]


class _BankAnswer(_Answer):
    bank: BankState


class ItemModel(_Model):
    """One item of the bank."""

    id: str
    label: str | None
    uri: str | None
    metadata: dict[str, Any]


class NeighborModel(_Model):
    """A neighbour; similarity is the cosine, higher is nearer."""

    id: str
    similarity: float
    label: str | None
    uri: str | None
    metadata: Annotated[dict[str, Any] | None, Field(description="present if included")] = None
    vector: Annotated[list[float] | None, Field(description="present if included")] = None


class SearchResult(_Model):
    """The neighbours of one query, nearest first."""

    neighbors: list[NeighborModel]


class SearchAnswer(_BankAnswer):
    """One result a query, in order."""

    results: list[SearchResult]


class ProtocolModel(_Model):
    """How many neighbours voted, and how sharply: weight = exp(similarity / temperature)."""

    k: int
    temperature: float


class ScoreModel(_Model):
    """A class's share of the vote."""

    label: str
    score: float


class VoteModel(_Model):
    """A neighbour that voted, and its share of the whole vote."""

    id: str
    label: str
    similarity: float
    weight: float


class ClassifyResult(_Model):
    """The label of one query, and why."""

    label: str | None
    confidence: float
    abstained: bool
    scores: list[ScoreModel]
    votes: list[VoteModel]


class ClassifyAnswer(_BankAnswer):
    """One result a query, in order."""

    protocol: ProtocolModel
    results: list[ClassifyResult]


class ItemAnswer(_BankAnswer):
    """One item."""

    item: ItemModel


class ItemsAnswer(_BankAnswer):
    """A page of items; `next` is the `after` of the next page, null at the end."""

    items: list[ItemModel]
    next: str | None


class Health(_Model):
    """Whether the service lives, or is ready."""

    status: Literal["alive", "ready"]


class Info(_Answer):
    """What is served, by what, and within which limits."""

    bank: dict[str, Any]
    encoder_spec: dict[str, Any]
    versions: dict[str, str]
    limits: dict[str, float]
    defaults: dict[str, Any]


class PositionedProblem(_Model):
    """What is wrong with one of several pictures."""

    position: int
    code: str
    detail: str


class Problem(_Model):
    """A refusal (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: Annotated[str, Field(description="stable; match this")]
    request_id: str
    errors: list[PositionedProblem] | None = None
