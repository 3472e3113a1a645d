"""What can be known of a request afterwards, and what cannot."""

import json
import logging
from collections.abc import Callable

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from index.retriever import Retriever
from service.app import create_app
from service.observability import JsonLines
from service.settings import Settings


def line_of(caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    records = [record for record in caplog.records if record.name == "service.observability"]
    return json.loads(JsonLines().format(records[-1]))


@pytest.mark.parametrize("path", ["/info", "/nothing", "/search", "/", "/items/x/thumbnail"])
def test_every_answer_carries_a_request_id_and_security_headers(client: TestClient, path: str):
    answer = client.get(path)
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_a_sane_request_id_of_the_client_is_kept(client: TestClient):
    assert client.get("/info", headers={"X-Request-Id": "job-7/42"}).headers["x-request-id"] == "job-7/42"


@pytest.mark.parametrize("id_", ["", "a b", "x" * 129, 'a"b', "é", "a;b"])
def test_any_other_is_replaced(client: TestClient, id_: str):
    answer = client.get("/info", headers={"X-Request-Id": id_.encode()})
    assert len(answer.headers["x-request-id"]) == 32


def test_one_line_a_request_names_the_route_and_the_stages(
    client: TestClient, caplog: pytest.LogCaptureFixture, shape_png: Callable[[str, int], bytes]
):
    caplog.set_level(logging.INFO, "service.observability")
    files = [("image", shape_png("circle", 0))]
    client.post("/search?k=3", files=files, headers={"X-Request-Id": "seen"})
    line = line_of(caplog)
    assert (line["request_id"], line["method"], line["route"], line["status"]) == ("seen", "POST", "/search", 200)
    assert set(line["stages"]) == {"decode", "embed", "search"}
    assert all(spent >= 0 for spent in line["stages"].values())
    assert line["ms"] >= max(line["stages"].values())


def test_the_line_holds_nothing_that_the_client_sent(client: TestClient, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "service.observability")
    client.get("/items/s3cr3t?label=s3cr3t", headers={"Authorization": "Bearer s3cr3t"})
    line = line_of(caplog)
    assert (line["route"], line["status"], line["code"]) == ("/items/{id:path}", 404, "item_not_found")
    client.get("/s3cr3t")
    assert line_of(caplog)["route"] == "-"
    assert "s3cr3t" not in "".join(
        JsonLines().format(record) for record in caplog.records if record.name != "httpx2"
    )


def test_a_bug_answers_500_with_its_request_id_and_nothing_else(
    retriever: Retriever, caplog: pytest.LogCaptureFixture
):
    app = create_app(Settings(threads=1), retriever)

    async def broken(request: Request) -> None:
        raise RuntimeError(f"internals of {request.url}")

    app.router.add_route("/broken", broken)
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.get("/broken", headers={"X-Request-Id": "bug-1"})
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal_error"
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "bug-1"
    assert answer.headers["content-type"] == "application/problem+json"
    assert "internals" not in answer.text
    trace = next(record for record in caplog.records if record.levelname == "ERROR")
    assert "RuntimeError" in JsonLines().format(trace)


def test_info_tells_what_is_served_and_within_which_limits(client: TestClient, retriever: Retriever):
    info = client.get("/info").json()
    assert info["encoder"] == retriever.encoder.sha256
    assert info["encoder_spec"]["name"] == retriever.encoder.spec.name
    assert info["bank"]["count"] == 32
    assert info["bank"]["labels"] == {"circle": 8, "square": 8, "stripes": 8, "triangle": 8}
    assert info["limits"]["max_k"] == 500
    assert info["defaults"]["classify"]["k"] == retriever.protocol.k
    assert {"python", "numpy", "pillow", "onnxruntime"} <= set(info["versions"])
