"""The interface's document: committed, complete, working without a network."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service import pages, problems

ROOT = Path(__file__).parents[2]
WEB = ROOT / "service" / "web"


def test_the_committed_document_is_the_served_one_byte_for_byte(client: TestClient):
    served = client.get("/openapi.json")
    assert served.headers["content-type"] == "application/json"
    assert served.content == (ROOT / "docs" / "openapi.json").read_bytes(), (
        "run: python -m service openapi > docs/openapi.json"
    )


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def test_every_reference_leads_somewhere(document: dict[str, Any]):
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names <= set(document["components"]["schemas"])


def test_every_example_of_a_question_works(client: TestClient, document: dict[str, Any]):
    tried = 0
    for path, operations in document["paths"].items():
        for example in (
            operations.get("post", {})
            .get("requestBody", {})
            .get("content", {})
            .get("application/json", {})
            .get("examples", {})
            .values()
        ):
            assert client.post(path, json=example["value"]).status_code == 200, (path, example)
            tried += 1
    assert tried >= 5


def test_every_status_that_is_documented_belongs_to_a_code(document: dict[str, Any]):
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if status != "200":
                    codes = answer["description"].split(" · ")
                    assert {problems.PROBLEMS[code].status for code in codes} == {int(status)}


def test_pages_fetch_nothing_from_elsewhere_and_hold_no_inline_code(client: TestClient):
    for path in pages.PATHS - {"/openapi.json"}:
        answer = client.get(path)
        assert answer.status_code == 200
        text = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), path
        if answer.headers["content-type"].startswith("text/html"):
            assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|javascript:", text), path
            linked = set(re.findall(r'(?:src|href)="(/[^"]*)"', text))
            assert linked <= pages.PATHS
        assert "innerHTML" not in text
        assert client.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert {file.name for file in WEB.iterdir()} == {name for name, _ in pages._FILES.values()}


def test_the_page_may_only_load_what_the_service_serves(client: TestClient):
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
