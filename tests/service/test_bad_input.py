"""The table "What bad input gets", a row at a time: status, code, and the service goes on answering."""

import base64
import json
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from index.retriever import Retriever
from service import problems, schemas


def encoded(size: tuple[int, int], kind: str = "PNG") -> bytes:
    out = BytesIO()
    Image.new("RGB", size, "red").save(out, kind)
    return out.getvalue()


def noise_png() -> bytes:
    out = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


JSON = {"Content-Type": "application/json"}
GOOD = noise_png()
GOOD64 = base64.b64encode(GOOD).decode()
ONES = [1.0] * 128


def raw(content: bytes, kind: str = "png") -> dict[str, Any]:
    return {"content": content, "headers": {"Content-Type": f"image/{kind}"}}


def body(content: bytes | str) -> dict[str, Any]:
    return {"content": content, "headers": JSON}


def multipart(content: bytes, boundary: str = "; boundary=b") -> dict[str, Any]:
    return {"content": content, "headers": {"Content-Type": f"multipart/form-data{boundary}"}}


def part(name: str, content: bytes = GOOD) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), content)


def npy(array: np.ndarray) -> dict[str, Any]:
    out = BytesIO()
    np.save(out, array, allow_pickle=True)
    return {"content": out.getvalue(), "headers": {"Content-Type": "application/x-npy"}}


def npy_bytes(content: bytes) -> dict[str, Any]:
    return {"content": content, "headers": {"Content-Type": "application/x-npy"}}


def huge_npy() -> bytes:
    """A header that promises 2^40 rows, and no rows."""
    out = BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 128)}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue()


def claimed_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, and that holds one row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9))
        + chunk(b"IEND", b"")
    )


def vectors(*rows: list[Any]) -> dict[str, Any]:
    return {"json": {"vectors": list(rows)}}


class Row(NamedTuple):
    status: int
    code: str
    path: str
    request: dict[str, Any]


ROWS = {
    # 400: malformed
    "no JSON": Row(400, "malformed_json", "/search", body("{")),
    "empty JSON": Row(400, "malformed_json", "/search", body("")),
    "JSON and more": Row(400, "malformed_json", "/search", body('{"ids":["a"]}{}')),
    "JSON not in UTF-8": Row(400, "malformed_json", "/search", body(b'{"ids":["\xff"]}')),
    "JSON in UTF-16": Row(400, "malformed_json", "/search", body('{"ids":["a"]}'.encode("utf-16"))),
    "a lone surrogate": Row(400, "malformed_json", "/search", body('{"ids":["\\ud800"]}')),
    "JSON nested deeply": Row(400, "malformed_json", "/search", body('{"filter":' + "[" * 100_000)),
    "a number of a million digits": Row(400, "malformed_json", "/search", body('{"k":' + "9" * 1_000_000 + "}")),
    "multipart without boundary": Row(400, "malformed_multipart", "/search", multipart(b"--b--\r\n", "")),
    "multipart of another boundary": Row(400, "malformed_multipart", "/search", multipart(b"--c--\r\n")),
    "multipart with a long boundary": Row(
        400, "malformed_multipart", "/search", multipart(b"", "; boundary=" + "b" * 5000)
    ),
    "multipart cut off": Row(400, "malformed_multipart", "/search", multipart(part("image"))),
    "multipart cut off in a header": Row(400, "malformed_multipart", "/search", multipart(b"--b\r\nContent-Dis")),
    "multipart with a huge header": Row(
        400, "malformed_multipart", "/search", multipart(b"--b\r\nX: " + b"x" * 100_000 + b"\r\n\r\n\r\n--b--\r\n")
    ),
    "multipart with many headers": Row(
        400, "malformed_multipart", "/search", multipart(b"--b\r\n" + b"X: x\r\n" * 1000 + b"\r\n\r\n--b--\r\n")
    ),
    "multipart that is empty": Row(400, "malformed_multipart", "/search", multipart(b"")),
    "base64 with strange letters": Row(400, "malformed_base64", "/search", {"json": {"images": ["%%%%"]}}),
    "base64 without padding": Row(400, "malformed_base64", "/search", {"json": {"images": ["QQ"]}}),
    "base64 that is not ASCII": Row(400, "malformed_base64", "/search", {"json": {"images": ["é" * 8]}}),
    "a data: URI without base64": Row(400, "malformed_base64", "/search", {"json": {"images": ["data:,x"]}}),
    "a data: URI without data": Row(400, "malformed_base64", "/search", {"json": {"images": ["data:;base64"]}}),
    "a filter that is no JSON": Row(400, "malformed_json", "/search?filter={", raw(GOOD)),
    "a .npy that is none": Row(400, "malformed_npy", "/search", npy_bytes(b"\x93NUMPX")),
    "an empty .npy": Row(400, "malformed_npy", "/search", npy_bytes(b"")),
    "a .npy with a broken header": Row(400, "malformed_npy", "/search", npy_bytes(b"\x93NUMPY\1\0\4\0{[(\n")),
    "a .npy of a later version": Row(400, "malformed_npy", "/search", npy_bytes(b"\x93NUMPY\x09\x00\x04\x00{}  ")),
    "a .npy that promises terabytes": Row(400, "malformed_npy", "/search", npy_bytes(huge_npy())),
    "a .npy cut off": Row(400, "malformed_npy", "/search", npy_bytes(npy(np.ones((2, 128), "f4"))["content"][:-4])),
    # 422: well-formed, and still not usable
    "an unknown field": Row(422, "request_invalid", "/search", {"json": {"ids": ["circle/0.png"], "foo": 1}}),
    "an unknown query parameter": Row(422, "request_invalid", "/search?foo=1", raw(GOOD)),
    "an unknown parameter of a list": Row(422, "request_invalid", "/items?foo=1", {"method": "GET"}),
    "a parameter of a list twice": Row(422, "request_invalid", "/items?label=a&label=b", {"method": "GET"}),
    "an option for a route without": Row(422, "request_invalid", "/embed?k=5", raw(GOOD)),
    "options beside a JSON body": Row(422, "request_invalid", "/search?k=5", {"json": {"ids": ["circle/0.png"]}}),
    "an option twice": Row(422, "request_invalid", "/search?k=5&k=6", raw(GOOD)),
    "another JSON value": Row(422, "request_invalid", "/search", body("[]")),
    "null": Row(422, "request_invalid", "/search", body("null")),
    "nothing asked": Row(422, "request_invalid", "/search", body("{}")),
    "two kinds of query": Row(422, "request_invalid", "/search", {"json": {"ids": ["a"], "images": [GOOD64]}}),
    "no pictures": Row(422, "request_invalid", "/search", {"json": {"images": []}}),
    "a picture that is a number": Row(422, "request_invalid", "/search", {"json": {"images": [5]}}),
    "multipart without a part": Row(422, "request_invalid", "/search", multipart(b"--b--\r\n")),
    "multipart with another part": Row(
        422, "request_invalid", "/search", multipart(part("image") + part("k", b"5") + b"--b--\r\n")
    ),
    "multipart with a part without name": Row(
        422, "request_invalid", "/search", multipart(b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b--\r\n")
    ),
    "k = 0": Row(422, "request_invalid", "/search", {"json": {"ids": ["circle/0.png"], "k": 0}}),
    "k = -1": Row(422, "request_invalid", "/search?k=-1", raw(GOOD)),
    "k as text": Row(422, "request_invalid", "/search", {"json": {"ids": ["circle/0.png"], "k": "5"}}),
    "k as a fraction": Row(422, "request_invalid", "/search?k=2.5", raw(GOOD)),
    "k that is empty": Row(422, "request_invalid", "/search?k=", raw(GOOD)),
    "k over the limit": Row(422, "parameter_invalid", "/search", {"json": {"ids": ["circle/0.png"], "k": 501}}),
    "k of 4,000 digits": Row(422, "parameter_invalid", "/search", body('{"ids":["a"],"k":' + "9" * 4000 + "}")),
    "classify with k = 0": Row(422, "request_invalid", "/classify", {"json": {"ids": ["circle/0.png"], "k": 0}}),
    "classify with k over the limit": Row(422, "parameter_invalid", "/classify?k=501", raw(GOOD)),
    "an effort of 0": Row(422, "request_invalid", "/search", {"json": {"ids": ["circle/0.png"], "effort": 0}}),
    "a similarity over 1": Row(422, "request_invalid", "/search?min_similarity=1.5", raw(GOOD)),
    "a similarity that is NaN": Row(422, "request_invalid", "/search?min_similarity=nan", raw(GOOD)),
    "a temperature of 0": Row(422, "request_invalid", "/classify?temperature=0", raw(GOOD)),
    "a temperature that is infinite": Row(422, "request_invalid", "/classify?temperature=inf", raw(GOOD)),
    "a confidence over 1": Row(422, "request_invalid", "/classify?min_confidence=2", raw(GOOD)),
    "negative votes": Row(422, "request_invalid", "/classify?votes=-1", raw(GOOD)),
    "an include of something else": Row(422, "request_invalid", "/search?include=secrets", raw(GOOD)),
    "too many vectors": Row(422, "request_invalid", "/search", {"json": {"vectors": [ONES] * 41}}),
    "too many ids": Row(422, "request_invalid", "/search", {"json": {"ids": ["circle/0.png"] * 41}}),
    "too many rows in a .npy": Row(422, "request_invalid", "/search", npy(np.ones((41, 128), "f4"))),
    "a vector too short": Row(422, "vector_invalid", "/search", vectors(ONES[:-1])),
    "a vector too long": Row(422, "vector_invalid", "/search", vectors(ONES, [*ONES, 1.0])),
    "an empty vector": Row(422, "vector_invalid", "/search", vectors([])),
    "no vectors": Row(422, "request_invalid", "/search", vectors()),
    "a vector of text": Row(422, "request_invalid", "/search", vectors(["1"] * 128)),
    "a vector nested deeper": Row(422, "request_invalid", "/search", vectors([ONES])),
    "a vector with NaN": Row(422, "vector_invalid", "/search", body(json.dumps({"vectors": [[np.nan] * 128]}))),
    "a vector with Infinity": Row(
        422, "vector_invalid", "/search", body(json.dumps({"vectors": [[-np.inf] * 128]}))
    ),
    "a number too large for float32": Row(422, "vector_invalid", "/search", vectors([1e39, *ONES[1:]])),
    "a number too large for float64": Row(
        422, "vector_invalid", "/search", body('{"vectors":[[1e999' + ",1" * 127 + "]]}")
    ),
    "a zero vector": Row(422, "vector_invalid", "/search", vectors([0.0] * 128)),
    "a vector of minus zeros": Row(422, "vector_invalid", "/search", vectors([-0.0] * 128)),
    "a vector that is zero as float32": Row(422, "vector_invalid", "/search", vectors([1e-50] * 128)),
    "a .npy of another dimension": Row(422, "vector_invalid", "/search", npy(np.ones((1, 127), "f4"))),
    "a .npy of three axes": Row(422, "vector_invalid", "/search", npy(np.ones((1, 1, 128), "f4"))),
    "a .npy of no axis": Row(422, "vector_invalid", "/search", npy(np.float32(1))),
    "a .npy without rows": Row(422, "vector_invalid", "/search", npy(np.ones((0, 128), "f4"))),
    "a .npy of integers": Row(422, "vector_invalid", "/search", npy(np.ones((1, 128), "i8"))),
    "a .npy of objects": Row(422, "vector_invalid", "/search", npy(np.array([[{}] * 128], dtype=object))),
    "a .npy with NaN": Row(422, "vector_invalid", "/search", npy(np.full((1, 128), np.nan, "f4"))),
    "a .npy of zeros": Row(422, "vector_invalid", "/classify", npy(np.zeros((1, 128), "f8"))),
    "a filter of another kind": Row(422, "request_invalid", "/search", {"json": {"ids": ["a"], "filter": 5}}),
    "a filter of an unknown key": Row(
        422, "filter_invalid", "/search", {"json": {"ids": ["circle/0.png"], "filter": {"colour": "red"}}}
    ),
    "a filter of an unknown operator": Row(
        422, "filter_invalid", "/search", {"json": {"ids": ["a"], "filter": {"metadata.a": {"like": "%"}}}}
    ),
    "a filter explosion": Row(
        422,
        "filter_invalid",
        "/classify",
        {"json": {"ids": ["circle/0.png"], "filter": {"label": [str(n) for n in range(100_000)]}}},
    ),
    "a page of 0": Row(422, "request_invalid", "/items?limit=0", {"method": "GET"}),
    "a page too long": Row(422, "request_invalid", "/items?limit=100000", {"method": "GET"}),
    # 415: not what is accepted
    "no Content-Type": Row(415, "unsupported_media_type", "/search", {"content": GOOD}),
    "a form": Row(
        415,
        "unsupported_media_type",
        "/search",
        {"content": b"a=b", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    ),
    "SVG by its type": Row(415, "unsupported_media_type", "/search", raw(b"<svg/>", "svg+xml")),
    "vectors to embed": Row(415, "unsupported_media_type", "/embed", npy(np.ones((1, 128), "f4"))),
    "nothing": Row(415, "image_unknown_format", "/search", raw(b"")),
    "an empty part": Row(415, "image_unknown_format", "/search", multipart(part("image", b"") + b"--b--\r\n")),
    "HTML as a JPEG": Row(415, "image_unknown_format", "/search", raw(b"<!doctype html><p>", "jpeg")),
    "SVG as a PNG": Row(415, "image_unknown_format", "/search", raw(b'<svg xmlns="http://www.w3.org/2000/svg"/>')),
    "PDF as a PNG": Row(415, "image_unknown_format", "/search", raw(b"%PDF-1.7")),
    "PostScript as a PNG": Row(415, "image_unknown_format", "/search", raw(b"%!PS-Adobe-3.0 EPSF-3.0")),
    "a gzipped body": Row(
        415, "unsupported_encoding", "/search", {"content": GOOD, "headers": JSON | {"Content-Encoding": "gzip"}}
    ),
    # 413: too much
    "a body over the limit, declared": Row(413, "body_too_large", "/search", raw(b"x" * (33 * 2**20))),
    "a body over the limit, chunked": Row(
        413, "body_too_large", "/search", {"content": (b"x" * 2**20 for _ in range(33)), "headers": JSON}
    ),
    "too many pixels, by the header": Row(413, "image_too_large", "/search", raw(claimed_png(10_000, 10_000))),
    "a side too long, by the header": Row(413, "image_too_large", "/search", raw(claimed_png(40_000, 1_000))),
    "too many pictures in JSON": Row(413, "too_many_images", "/search", {"json": {"images": [GOOD64] * 5}}),
    "too many parts": Row(413, "too_many_images", "/search", multipart(part("image") * 5 + b"--b--\r\n")),
    # 422: pictures that are none
    "a truncated JPEG": Row(422, "image_decode_failed", "/search", raw(encoded((64, 64), "JPEG")[:-300], "jpeg")),
    "a truncated PNG": Row(422, "image_decode_failed", "/search", raw(GOOD[: len(GOOD) // 2])),
    "a PNG with too few pixels": Row(422, "image_decode_failed", "/search", raw(claimed_png(64, 64))),
    "a GIF that is only a signature": Row(422, "image_decode_failed", "/search", raw(b"GIF89a", "gif")),
    "a strip": Row(422, "image_extreme_shape", "/search", raw(encoded((2000, 4)))),
    "one pixel": Row(422, "image_extreme_shape", "/search", raw(encoded((1, 1)))),
    # 404, 405, 406
    "an unknown id in a path": Row(404, "item_not_found", "/items/circle/99.png", {"method": "GET"}),
    "an unknown id with dots": Row(404, "item_not_found", "/items/..%2F..%2Fetc%2Fpasswd", {"method": "GET"}),
    "an unknown id with NUL": Row(404, "item_not_found", "/items/a%00b", {"method": "GET"}),
    "an unknown id that is long": Row(404, "item_not_found", "/items/" + "a" * 10_000, {"method": "GET"}),
    "an unknown id not in UTF-8": Row(404, "item_not_found", "/items/%ff%fe", {"method": "GET"}),
    "a thumbnail of an unknown id": Row(404, "item_not_found", "/items/nobody/thumbnail", {"method": "GET"}),
    "an unknown id as a query": Row(404, "item_not_found", "/search", {"json": {"ids": ["circle/0.png", "x"]}}),
    "an unknown id with NUL as a query": Row(404, "item_not_found", "/classify", {"json": {"ids": ["\0"]}}),
    "an unknown path": Row(404, "not_found", "/nothing", {"method": "GET"}),
    "a path with a slash more": Row(404, "not_found", "/search/", {"json": {"ids": ["circle/0.png"]}}),
    "a GET for a POST": Row(405, "method_not_allowed", "/search", {"method": "GET"}),
    "a DELETE for a GET": Row(405, "method_not_allowed", "/info", {"method": "DELETE"}),
    "a method that nobody knows": Row(405, "method_not_allowed", "/info", {"method": "BREW"}),
    "an Accept for HTML": Row(
        406, "not_acceptable", "/search", {"json": {"ids": ["circle/0.png"]}, "headers": {"Accept": "text/html"}}
    ),
    "an Accept that forbids JSON": Row(
        406, "not_acceptable", "/embed", raw(GOOD) | {"headers": {"Accept": "application/json;q=0"}}
    ),
    "an Accept for a .npy from search": Row(
        406, "not_acceptable", "/search", raw(GOOD) | {"headers": {"Accept": "application/x-npy"}}
    ),
    # 421
    "a foreign Host": Row(421, "host_not_allowed", "/info", {"method": "GET", "headers": {"Host": "evil.example"}}),
    "a Host that only begins like ours": Row(
        421, "host_not_allowed", "/info", {"method": "GET", "headers": {"Host": "localhost.evil.example:8000"}}
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_bad_input_gets_its_answer_and_the_service_goes_on(client: TestClient, row: Row):
    arguments = dict(row.request)
    answer = client.request(arguments.pop("method", "POST"), row.path, **arguments)
    document = answer.json()
    assert (answer.status_code, document["code"]) == (row.status, row.code), answer.text
    assert answer.headers["content-type"] == problems.MEDIA_TYPE
    assert document["status"] == row.status
    assert document["request_id"] == answer.headers["x-request-id"]
    assert len(document["detail"]) < 400
    schemas.Problem.model_validate_json(answer.content)
    if row.status == 405:
        assert answer.headers["allow"]
    after = client.post("/search", json={"ids": ["circle/0.png"], "k": 1})
    assert after.status_code == 200


def test_every_faulty_picture_of_several_is_named_with_its_position(client: TestClient):
    files = [("image", picture) for picture in (GOOD, b"", GOOD[:90], encoded((1, 1)))]
    document = client.post("/embed", files=files).json()
    assert (document["status"], document["code"]) == (422, "image_invalid")
    assert [(error["position"], error["code"]) for error in document["errors"]] == [
        (1, "image_unknown_format"),
        (2, "image_decode_failed"),
        (3, "image_extreme_shape"),
    ]


def test_several_pictures_with_the_same_fault_share_its_code(client: TestClient):
    document = client.post("/embed", json={"images": [GOOD64, "%", "%"]}).json()
    assert (document["status"], document["code"]) == (400, "malformed_base64")
    assert [error["position"] for error in document["errors"]] == [1, 2]


def test_an_unlabelled_bank_answers_409(
    serve: Callable[..., TestClient], tiny_encoder: Any, unlabelled_bank_path: Any
):
    from index.memory_bank import MemoryBank

    with MemoryBank.open(unlabelled_bank_path, read_only=True) as bank:
        client = serve(Retriever(tiny_encoder, bank))
        answer = client.post("/classify", **raw(GOOD))
        assert (answer.status_code, answer.json()["code"]) == (409, "bank_has_no_labels")
        assert client.post("/search", **raw(GOOD)).status_code == 200
        assert client.get("/info").json()["bank"]["labels"] == {}


def test_an_answer_too_long_is_refused(serve: Callable[..., TestClient]):
    client = serve(max_neighbors=20)
    body = {"ids": ["circle/0.png", "circle/1.png"]}
    assert client.post("/search", json=body | {"k": 10}).status_code == 200
    for path, option in (("/search", {"k": 11}), ("/classify", {"votes": 11})):
        assert client.post(path, json=body | option).json()["code"] == "parameter_invalid"


def test_refusals_do_not_repeat_the_input(client: TestClient):
    secret = "s3cr3t-" * 4
    answers = [
        client.post("/search", json={"ids": [secret], "k": secret}),
        client.post("/search", json={"vectors": [[secret]]}),
        client.post("/search", **body('{"ids": "' + secret)),
        client.post(f"/search?k={secret}", **raw(GOOD)),
    ]
    assert [answer.status_code for answer in answers] == [422, 422, 400, 422]
    assert all(secret not in answer.text for answer in answers)


def test_every_code_of_the_index_that_input_can_cause_has_its_answer():
    from index import errors

    raised = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.InputError)
    ]
    for kind in raised:
        assert 400 <= problems.PROBLEMS[problems.code_of(kind("x"))].status < 500
    with pytest.raises(errors.BankDamagedError):
        problems.as_request_error(errors.BankDamagedError("internals"))
