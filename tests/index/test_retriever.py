"""Search and classify against index.knn over the same vectors."""

import numpy as np
import pytest

from index import knn
from index.errors import BankHasNoLabelsError, ItemNotFoundError, VectorError
from index.knn import KnnProtocol
from index.memory_bank import EncoderIdentity, Item, MemoryBank
from index.retriever import DEFAULT_PROTOCOL, Retriever

CLASSES = ("a", "b", "c")


@pytest.fixture
def vectors() -> np.ndarray:
    return knn.normalise(np.random.default_rng(5).standard_normal((60, 128)))


@pytest.fixture
def labels() -> np.ndarray:
    return np.arange(60) % 4 - 1  # a quarter unlabelled; codes in order of first use below


@pytest.fixture
def retriever(tiny_encoder, tmp_path, vectors, labels):
    with MemoryBank.create(tmp_path / "bank", encoder=EncoderIdentity.of(tiny_encoder)) as bank:
        items = [
            Item(f"item-{row}", None, CLASSES[label] if label >= 0 else None, {"row": row}, None)
            for row, label in enumerate(labels)
        ]
        bank.add(items, vectors)
        yield Retriever(tiny_encoder, bank)


def test_search_is_top_k_with_the_items(retriever, vectors):
    queries = knn.normalise(np.random.default_rng(6).standard_normal((4, 128)))
    truth = knn.top_k(queries, vectors, 7)
    for row, neighbors in enumerate(retriever.search(queries * 3, k=7, with_vectors=True)):
        assert [n.item.id for n in neighbors] == [f"item-{i}" for i in truth.rows[row]]
        np.testing.assert_allclose([n.similarity for n in neighbors], truth.similarities[row], atol=1e-6)
        np.testing.assert_allclose([n.vector for n in neighbors], vectors[truth.rows[row]], atol=1e-6)
        assert neighbors[0].item.metadata == {"row": int(truth.rows[row, 0])}


def test_k_over_the_bank_gives_all_and_min_similarity_cuts(retriever, vectors):
    (everything,) = retriever.search(vectors[:1], k=10_000)
    assert len(everything) == 60
    (near,) = retriever.search(vectors[:1], k=60, min_similarity=0.1)
    assert [n.item.id for n in near] == [n.item.id for n in everything if n.similarity >= 0.1]
    assert 0 < len(near) < 60


def test_leave_one_out_over_the_bank_is_the_measured_accuracy(retriever, vectors, labels):
    protocol = KnnProtocol(9, 0.1)
    ids = [f"item-{row}" for row in range(60)]
    answers = retriever.classify(retriever.vectors(ids), protocol=protocol, exclude=ids)
    labelled = labels >= 0
    hits = [answer.label == CLASSES[label] for answer, label in zip(answers, labels, strict=True) if label >= 0]
    assert np.mean(hits) == knn.leave_one_out(protocol, vectors, labels, 3)
    assert labelled.sum() == len(hits)


def test_votes_explain_the_answer(retriever, vectors):
    (answer,) = retriever.classify(vectors[1:2], protocol=KnnProtocol(20, 0.2), votes=20)
    assert sum(score for _, score in answer.scores) == pytest.approx(1)
    assert answer.scores[0] == (answer.label, answer.confidence)
    by_label: dict[str, float] = {}
    for vote in answer.votes:
        by_label[vote.label] = by_label.get(vote.label, 0) + vote.weight
    assert by_label == pytest.approx(dict(answer.scores))
    assert [v.similarity for v in answer.votes] == sorted((v.similarity for v in answer.votes), reverse=True)
    assert all(v.label is not None for v in answer.votes)


def test_an_unsure_answer_abstains_with_its_reasons(retriever, vectors):
    (answer,) = retriever.classify(vectors[:1], protocol=KnnProtocol(60, 10.0), min_confidence=0.9, votes=3)
    assert answer.abstained
    assert answer.label is None
    assert 0 < answer.confidence < 0.9
    assert len(answer.votes) == 3


def test_a_bank_without_labels_cannot_classify(tiny_encoder, tmp_path, vectors):
    with MemoryBank.create(tmp_path / "plain", encoder=EncoderIdentity.of(tiny_encoder)) as bank:
        bank.add([Item("x", None, None, {}, None)], vectors[:1])
        with pytest.raises(BankHasNoLabelsError):
            Retriever(tiny_encoder, bank).classify(vectors[:1])


def test_bad_queries_are_refused(retriever):
    with pytest.raises(VectorError):
        retriever.search(np.ones((1, 3), np.float32))
    with pytest.raises(VectorError):
        retriever.search(np.full((1, 128), np.nan, np.float32))
    with pytest.raises(ItemNotFoundError):
        retriever.vectors(["nobody"])


def test_without_a_measured_protocol_the_papers_is_used(retriever):
    assert retriever.protocol == DEFAULT_PROTOCOL
