"""The use case: what looks like this picture, and what is it? By picture, by vector or by an item's id."""

from collections.abc import Sequence
from dataclasses import dataclass

from index.encoder import Encoder
from index.errors import BankHasNoLabelsError
from index.filters import Filter
from index.images import DEFAULT_LIMITS, ImageLimits
from index.knn import KnnProtocol, Vectors, Votes, normalise, vote
from index.memory_bank import Hits, Item, MemoryBank

# Without a measured protocol in the encoder: the evaluation setting of Wu et al. 2018.
DEFAULT_PROTOCOL = KnnProtocol(k=200, temperature=0.07)


@dataclass(frozen=True)
class Neighbor:
    """An item of the bank and its cosine similarity to the query; `vector` is float32 (D,) when asked for."""

    item: Item
    similarity: float
    vector: Vectors | None = None


@dataclass(frozen=True)
class Vote:
    """One labelled neighbour and its share (0 to 1) of the whole vote."""

    id: str
    label: str
    similarity: float
    weight: float


@dataclass(frozen=True)
class Classification:
    """The answer to "what is this?".

    Attributes:
        label: the winning class; None when abstained or when no labelled neighbour was found.
        confidence: the winner's share of the vote, 0 to 1.
        abstained: the confidence was below what the caller asked for, or nobody voted.
        scores: every class that got votes, with its share, largest first; they sum to 1.
        votes: the strongest voters, nearest first.
    """

    label: str | None
    confidence: float
    abstained: bool
    scores: list[tuple[str, float]]
    votes: list[Vote]


class Retriever:
    """An encoder and the bank that it built. Reading is safe from many threads."""

    def __init__(self, encoder: Encoder, bank: MemoryBank) -> None:
        self.encoder, self.bank = encoder, bank

    @property
    def protocol(self) -> KnnProtocol:
        """The protocol of the accuracy in the encoder's spec: the default of `classify`."""
        report = self.encoder.spec.knn
        return KnnProtocol(report.k, report.temperature) if report else DEFAULT_PROTOCOL

    def embed(self, pictures: Sequence[bytes], limits: ImageLimits = DEFAULT_LIMITS) -> Vectors:
        """Embed encoded pictures: float32 (B, D), unit rows."""
        return self.encoder.embed_pictures(pictures, limits)

    def vectors(self, ids: Sequence[str]) -> Vectors:
        """Return the stored vectors of items: float32 (B, D).

        Raises:
            ItemNotFoundError: an id that the bank does not hold.
        """
        return self.bank.vectors(ids)

    def search(
        self,
        queries: Vectors,
        *,
        k: int = 10,
        exact: bool = False,
        effort: int | None = None,
        min_similarity: float | None = None,
        filter: Filter | None = None,  # noqa: A002 - the interface's word
        exclude: Sequence[str | None] | None = None,
        with_vectors: bool = False,
    ) -> list[list[Neighbor]]:
        """Find the nearest items of each query.

        Args:
            queries: float32 (B, D), any length but zero.
            k: neighbours a query; fewer come back only when fewer items match.
            exact: search all stored vectors instead of the index.
            effort: search effort of the index; None takes the tuned one.
            min_similarity: leave out neighbours below it.
            filter: only items that match.
            exclude: one id per query that is not its own neighbour, or None.
            with_vectors: return the stored vectors too.

        Returns:
            One list a query, nearest first.
        """
        hits = self._hits(queries, k, exact=exact, effort=effort, filter=filter, exclude=exclude)
        results = []
        for keys, similarities in zip(hits.keys, hits.similarities, strict=True):
            found = [
                Neighbor(item, float(similarity))
                for item, similarity in zip(self.bank.items(keys), similarities, strict=True)
                if item is not None and (min_similarity is None or similarity >= min_similarity)
            ]
            if with_vectors and found:
                vectors = self.bank.vectors([neighbor.item.id for neighbor in found])
                found = [Neighbor(n.item, n.similarity, vector) for n, vector in zip(found, vectors, strict=True)]
            results.append(found)
        return results

    def classify(
        self,
        queries: Vectors,
        *,
        protocol: KnnProtocol | None = None,
        votes: int = 10,
        min_confidence: float = 0.0,
        exact: bool = False,
        effort: int | None = None,
        filter: Filter | None = None,  # noqa: A002
        exclude: Sequence[str | None] | None = None,
    ) -> list[Classification]:
        """Let the nearest items of each query vote for its class (index.knn).

        Args:
            queries: float32 (B, D).
            protocol: None takes the one of the encoder's measured accuracy.
            votes: how many voters to return.
            min_confidence: abstain below this share.
            exact: as in `search`.
            effort: as in `search`.
            filter: as in `search`.
            exclude: as in `search`.

        Raises:
            BankHasNoLabelsError: no item of the bank has a label.
        """
        protocol = protocol or self.protocol
        hits = self._hits(queries, protocol.k, exact=exact, effort=effort, filter=filter, exclude=exclude)
        names = self.bank.class_names
        if not names:
            raise BankHasNoLabelsError(
                "expected labelled items, got a bank without any; build it from class folders"
            )
        outcome = vote(hits.labels, hits.similarities, len(names), protocol.temperature)
        return [
            _verdict(outcome, query, names, self._voters(hits, query, outcome, votes), min_confidence)
            for query in range(len(hits.keys))
        ]

    def _voters(self, hits: Hits, query: int, outcome: Votes, limit: int) -> list[Vote]:
        voting = (hits.labels[query] >= 0).nonzero()[0][:limit]
        items = self.bank.items(hits.keys[query][voting])
        similarities, weights = hits.similarities[query], outcome.weights[query]
        return [
            Vote(item.id, item.label, float(similarities[at]), float(weights[at]))
            for at, item in zip(voting, items, strict=True)
            if item is not None and item.label is not None
        ]

    def _hits(
        self,
        queries: Vectors,
        k: int,
        *,
        exact: bool,
        effort: int | None,
        filter: Filter | None,  # noqa: A002
        exclude: Sequence[str | None] | None,
    ) -> Hits:
        unit = normalise(queries, self.encoder.dim)
        return self.bank.search(unit, k, exact=exact, effort=effort, filter=filter, exclude=exclude)


def _verdict(
    outcome: Votes, query: int, names: Sequence[str], votes: list[Vote], min_confidence: float
) -> Classification:
    """Put one query's vote into words, its winner first among equal scores."""
    winner, scores = int(outcome.winners[query]), outcome.scores[query]
    confidence = float(scores[winner]) if winner >= 0 else 0.0
    abstained = winner < 0 or confidence < min_confidence
    order = sorted(scores.nonzero()[0], key=lambda code: (code != winner, -scores[code]))
    return Classification(
        label=None if abstained else names[winner],
        confidence=confidence,
        abstained=abstained,
        scores=[(names[code], float(scores[code])) for code in order],
        votes=votes,
    )
