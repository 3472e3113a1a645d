"""Good questions: the same vectors, neighbours and votes as the parts give by themselves."""

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from index import knn
from index.retriever import Retriever
from service import schemas

Draw = Callable[[str, int], bytes]


def as_format(png: bytes, kind: str) -> bytes:
    out = BytesIO()
    Image.open(BytesIO(png)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_three_transports_give_the_identical_vector_bit_for_bit(
    client: TestClient, retriever: Retriever, shape_png: Draw, kind: str
):
    picture = as_format(shape_png("circle", 1), kind)
    text = base64.b64encode(picture).decode()
    answers = [
        client.post("/embed", content=picture, headers={"Content-Type": f"image/{kind.lower()}"}),
        client.post("/embed", files=[("image", ("x.bin", picture, "text/plain"))]),
        client.post("/embed", json={"images": [text]}),
        client.post("/embed", json={"images": [f"data:image/{kind.lower()};base64,{text}"]}),
    ]
    assert {answer.content for answer in answers} == {answers[0].content}
    found = np.array(answers[0].json()["embeddings"], np.float32)
    assert found.tobytes() == retriever.embed([picture]).tobytes()
    schemas.EmbedAnswer.model_validate_json(answers[0].content)


def test_several_pictures_come_back_in_their_order(client: TestClient, retriever: Retriever, shape_png: Draw):
    pictures = [shape_png("circle", 0), shape_png("square", 1), shape_png("stripes", 2)]
    answer = client.post("/embed", files=[("image", picture) for picture in pictures]).json()
    assert answer["dim"] == 128
    assert answer["encoder"] == retriever.encoder.sha256
    alone = [client.post("/embed", files=[("image", picture)]).json()["embeddings"][0] for picture in pictures]
    np.testing.assert_allclose(answer["embeddings"], alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(answer["embeddings"], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/x-npy", "application/x-npy"),
        ("application/octet-stream", "application/octet-stream"),
        ("application/json;q=0.5, application/x-npy", "application/x-npy"),
        ("application/*", "application/json"),
        ("*/*", "application/json"),
    ],
)
def test_embeddings_come_in_the_accepted_form(client: TestClient, shape_png: Draw, accept: str, kind: str):
    upload = [("image", shape_png("circle", seed)) for seed in (0, 1)]
    expected = np.array(client.post("/embed", files=upload).json()["embeddings"], np.float32)
    answer = client.post("/embed", files=upload, headers={"Accept": accept})
    assert answer.headers["content-type"] == kind
    assert answer.headers["x-shape"] == "2,128"
    assert answer.headers["x-encoder"] == client.get("/info").json()["encoder"]
    if kind == "application/x-npy":
        got = np.load(BytesIO(answer.content), allow_pickle=False)
        assert got.dtype == np.dtype("<f4")
    elif kind == "application/octet-stream":
        got = np.frombuffer(answer.content, "<f4").reshape(2, 128)
    else:
        got = np.array(answer.json()["embeddings"], np.float32)
    assert got.tobytes() == expected.tobytes()


def test_search_gives_what_the_retriever_gives(client: TestClient, retriever: Retriever, shape_png: Draw):
    picture = shape_png("stripes", 20)
    answer = client.post("/search?k=7&include=metadata,vector", files=[("image", picture)])
    schemas.SearchAnswer.model_validate_json(answer.content)
    found = answer.json()
    assert found["encoder"] == retriever.encoder.sha256
    assert found["bank"] == {"generation": retriever.bank.generation, "count": 32}
    expected = retriever.search(retriever.embed([picture]), k=7, with_vectors=True)[0]
    for got, want in zip(found["results"][0]["neighbors"], expected, strict=True):
        assert (got["id"], got["label"], got["uri"]) == (want.item.id, want.item.label, want.item.uri)
        assert got["metadata"] == want.item.metadata
        assert np.float32(got["similarity"]) == np.float32(want.similarity)
        assert np.array(got["vector"], np.float32).tobytes() == want.vector.tobytes()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_npy_query_is_as_good_as_a_list(client: TestClient, retriever: Retriever, dtype: str, order: str):
    rows = np.asarray(3 * retriever.vectors(["circle/0.png", "square/3.png"]), dtype=dtype, order=order)
    body = BytesIO()
    np.save(body, rows)
    headers = {"Content-Type": "application/x-npy"}
    binary = client.post("/search?k=3", content=body.getvalue(), headers=headers).json()
    listed = client.post("/search", json={"vectors": rows.astype(np.float64).tolist(), "k": 3}).json()
    assert binary["results"] == listed["results"]
    assert [result["neighbors"][0]["id"] for result in binary["results"]] == ["circle/0.png", "square/3.png"]


def test_one_vector_alone_is_a_npy_query(client: TestClient, retriever: Retriever):
    body = BytesIO()
    np.save(body, retriever.vectors(["circle/0.png"])[0])
    answer = client.post("/search", content=body.getvalue(), headers={"Content-Type": "application/x-npy"})
    assert answer.json()["results"][0]["neighbors"][0]["id"] == "circle/0.png"


def test_vectors_are_normalised_whatever_their_length(client: TestClient, retriever: Retriever):
    unit = retriever.vectors(["circle/0.png"]).astype(np.float64)
    answers = [
        client.post("/search", json={"vectors": (unit * scale).tolist()}).json() for scale in (1, 1e-30, 1e30)
    ]
    for answer in answers[1:]:
        assert answer["results"][0]["neighbors"][0]["id"] == "circle/0.png"
        similarities = [[each["similarity"] for each in a["results"][0]["neighbors"]] for a in (answer, answers[0])]
        np.testing.assert_allclose(*similarities, atol=1e-6)


def test_an_item_is_not_its_own_neighbour_unless_asked(client: TestClient):
    ids = ["circle/0.png", "square/3.png"]
    without = client.post("/search", json={"ids": ids, "k": 40}).json()["results"]
    within = client.post("/search", json={"ids": ids, "k": 40, "exclude_query": False}).json()["results"]
    for id_, others, everything in zip(ids, without, within, strict=True):
        assert id_ not in [each["id"] for each in others["neighbors"]]
        assert everything["neighbors"][0]["id"] == id_
        assert (len(others["neighbors"]), len(everything["neighbors"])) == (31, 32)


def test_neighbours_are_sorted_and_cut_at_the_least_similarity(client: TestClient):
    every = client.post("/search", json={"ids": ["circle/0.png"], "k": 31}).json()["results"][0]["neighbors"]
    similarities = [each["similarity"] for each in every]
    assert similarities == sorted(similarities, reverse=True)
    least = similarities[12]
    body = {"ids": ["circle/0.png"], "k": 31, "min_similarity": least}
    cut = client.post("/search", json=body).json()["results"][0]["neighbors"]
    assert cut == [each for each in every if each["similarity"] >= least]


def test_include_decides_what_is_told(client: TestClient):
    def keys(include: list[str] | None) -> set[str]:
        body = {"ids": ["circle/0.png"], "k": 1} | ({} if include is None else {"include": include})
        return set(client.post("/search", json=body).json()["results"][0]["neighbors"][0])

    plain = {"id", "similarity", "label", "uri"}
    assert keys([]) == plain
    assert keys(None) == keys(["metadata"]) == plain | {"metadata"}
    assert keys(["vector"]) == plain | {"vector"}


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        ({"label": "circle"}, lambda item: item["label"] == "circle"),
        ({"label": ["circle", "square"]}, lambda item: item["label"] in ("circle", "square")),
        ({"metadata.seed": {"gte": 2, "lt": 4}}, lambda item: 2 <= item["metadata"]["seed"] < 4),
        ({"label": "circle", "metadata.seed": 3}, lambda item: item["id"] == "circle/3.png"),
        ({"label": "nothing"}, lambda _: False),
    ],
)
def test_a_filter_works_inside_the_search_in_body_and_query(
    client: TestClient, shape_png: Draw, condition: dict[str, object], matches: Callable[[dict[str, object]], bool]
):
    picture = shape_png("circle", 30)
    text = base64.b64encode(picture).decode()
    every = client.post("/search", json={"images": [text], "k": 32}).json()["results"][0]["neighbors"]
    body = client.post("/search", json={"images": [text], "k": 5, "filter": condition}).json()
    query = client.post(
        "/search", params={"k": 5, "filter": json.dumps(condition)}, files=[("image", picture)]
    ).json()
    assert body == query
    assert body["results"][0]["neighbors"] == [item for item in every if matches(item)][:5]


def test_classify_explains_its_votes(client: TestClient, retriever: Retriever):
    answer = client.post("/classify", json={"ids": ["stripes/5.png"], "k": 9, "temperature": 0.2, "votes": 4})
    schemas.ClassifyAnswer.model_validate_json(answer.content)
    found = answer.json()
    assert found["protocol"] == {"k": 9, "temperature": 0.2}
    assert found["encoder"] == retriever.encoder.sha256
    result = found["results"][0]
    neighbours = client.post("/search", json={"ids": ["stripes/5.png"], "k": 9}).json()["results"][0]["neighbors"]
    weights = np.exp(np.array([each["similarity"] for each in neighbours]) / 0.2)
    shares = weights / weights.sum()
    by_class: dict[str, float] = {}
    for neighbour, share in zip(neighbours, shares, strict=True):
        by_class[neighbour["label"]] = by_class.get(neighbour["label"], 0.0) + share
    assert {score["label"]: score["score"] for score in result["scores"]} == pytest.approx(by_class, abs=1e-6)
    assert sum(score["score"] for score in result["scores"]) == pytest.approx(1)
    assert result["label"] == max(by_class, key=lambda label: by_class[label])
    assert result["confidence"] == pytest.approx(max(by_class.values()), abs=1e-6)
    assert [vote["id"] for vote in result["votes"]] == [each["id"] for each in neighbours[:4]]
    assert [vote["weight"] for vote in result["votes"]] == pytest.approx(shares[:4].tolist(), abs=1e-6)


def test_the_protocol_is_the_encoders_unless_asked(client: TestClient, retriever: Retriever):
    found = client.post("/classify", json={"ids": ["stripes/5.png"]}).json()
    assert found["protocol"] == {"k": retriever.protocol.k, "temperature": retriever.protocol.temperature}
    assert len(found["results"][0]["votes"]) == 10


def test_classify_abstains_below_the_asked_confidence(client: TestClient):
    sure = client.post("/classify", json={"ids": ["circle/0.png"], "k": 15}).json()["results"][0]
    body = {"ids": ["circle/0.png"], "k": 15, "min_confidence": min(1.0, sure["confidence"] + 1e-6)}
    unsure = client.post("/classify", json=body).json()["results"][0]
    assert (sure["abstained"], unsure["abstained"], unsure["label"]) == (False, True, None)
    assert unsure["scores"] == sure["scores"]


@pytest.mark.parametrize("protocol", [knn.KnnProtocol(5, 0.07), knn.KnnProtocol(31, 0.5)])
def test_leave_one_out_over_http_is_the_accuracy_that_training_prints(
    client: TestClient, retriever: Retriever, protocol: knn.KnnProtocol
):
    items = client.get("/items?limit=1000").json()["items"]
    ids, labels = [item["id"] for item in items], [item["label"] for item in items]
    body = {"ids": ids, "k": protocol.k, "temperature": protocol.temperature}
    results = client.post("/classify", json=body).json()["results"]
    right = [result["label"] == label for result, label in zip(results, labels, strict=True)]
    names = sorted(set(labels))
    codes = np.array([names.index(label) for label in labels])
    expected = knn.leave_one_out(protocol, retriever.vectors(ids), codes, len(names))
    assert np.mean(right) == pytest.approx(expected, abs=1e-12)


def test_k_larger_than_the_bank_gives_all_items(client: TestClient):
    body = {"ids": ["circle/0.png"], "k": 500, "exclude_query": False, "exact": True, "effort": 3}
    found = client.post("/search", json=body).json()["results"][0]["neighbors"]
    assert len({each["id"] for each in found}) == 32


def test_questions_of_many_clients_at_once_get_the_answers_they_get_alone(client: TestClient, shape_png: Draw):
    requests: list[dict[str, Any]] = [
        *({"url": "/search", "json": {"ids": [f"circle/{n}.png"], "k": 5}} for n in range(4)),
        *({"url": "/classify?k=9", "files": [("image", shape_png("square", n))]} for n in range(4)),
        *({"url": "/search", "files": [("image", b"broken")]} for _ in range(2)),
        *({"url": "/embed", "files": [("image", shape_png("stripes", n))]} for n in range(4)),
    ]
    alone = [client.post(**request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: client.post(**requests[n % len(requests)]), range(4 * len(requests))))
    for n, answer in enumerate(together):
        expected = alone[n % len(requests)]
        assert answer.status_code == expected.status_code
        if answer.status_code == 200:
            assert answer.content == expected.content
