"""Who may ask: keys, rights and Hosts."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from service import access
from service.access import Right
from service.settings import Settings

Serve = Callable[..., TestClient]
KEYS = {"read_key": "r-1", "write_key": "w-2", "admin_key": "ä-3"}


def bearer(key: str | bytes) -> dict[str, bytes]:
    return {"Authorization": b"Bearer " + (key if isinstance(key, bytes) else key.encode())}


@pytest.mark.parametrize("key", KEYS.values())
def test_every_key_may_read(serve: Serve, key: str):
    client = serve(**KEYS)
    assert client.get("/info", headers=bearer(key)).status_code == 200
    assert client.post("/search", json={"ids": ["circle/0.png"]}, headers=bearer(key)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "key_missing"),
        (bearer("wrong"), "key_wrong"),
        (bearer(""), "key_wrong"),
        (bearer(b"\xff\xfe"), "key_wrong"),
        ({"Authorization": "Basic ci0x"}, "key_wrong"),
        ({"Authorization": "r-1"}, "key_wrong"),
    ],
)
def test_without_a_known_key_the_answer_is_401(serve: Serve, headers: dict[str, str], code: str):
    client = serve(**KEYS)
    for path in ("/info", "/items", "/nothing"):
        answer = client.get(path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, code)
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert client.post("/search", content=b"x" * 2**20, headers=headers).status_code == 401


def test_probes_and_the_page_need_no_key(serve: Serve):
    client = serve(**KEYS)
    for path in ("/livez", "/readyz", "/", "/docs", "/openapi.json", "/app.js"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_a_read_key_may_not_change_anything(serve: Serve, method: str):
    client = serve(**KEYS)
    answer = client.request(method, "/items/circle/0.png", headers=bearer("r-1"))
    assert (answer.status_code, answer.json()["code"]) == (403, "key_insufficient")
    assert client.post("/admin/anything", headers=bearer("w-2")).status_code == 403
    assert client.post("/admin/anything", headers=bearer("ä-3")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "right"),
    [
        ("GET", "/items/x", Right.READ),
        ("HEAD", "/", Right.READ),
        ("POST", "/embed", Right.READ),
        ("POST", "/embed/", Right.WRITE),
        ("POST", "/items", Right.WRITE),
        ("PUT", "/items/x", Right.WRITE),
        ("BREW", "/info", Right.WRITE),
        ("GET", "/admin", Right.ADMIN),
        ("POST", "/admin/reload", Right.ADMIN),
    ],
)
def test_what_is_not_known_to_be_harmless_needs_more(method: str, path: str, right: Right):
    assert access.needed(method, path) == right


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("shop.example:80", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost@evil.example", 421),
        ("192.168.1.4", 421),
        ("[::2]", 421),
        ("", 421),
    ],
)
def test_only_our_own_hosts_are_answered(serve: Serve, host: str, status: int):
    answer = serve(allowed_hosts=("shop.example",)).get("/livez", headers={"Host": host})
    assert answer.status_code == status


def test_with_keys_any_host_is_answered_unless_hosts_are_named(serve: Serve):
    assert serve(**KEYS).get("/info", headers=bearer("r-1") | {"Host": "shop.example"}).status_code == 200
    named = serve(**KEYS, allowed_hosts=("shop.example",))
    assert named.get("/info", headers=bearer("r-1") | {"Host": "evil.example"}).status_code == 421


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "shop.example", ""])
def test_without_keys_only_loopback_is_served(host: str):
    with pytest.raises(ValidationError, match="expected keys to serve"):
        Settings(host=host)
    assert Settings(host=host, insecure=True).host == host
    assert Settings(host=host, read_key="x").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_loopback_needs_no_keys(host: str):
    assert not Settings(host=host).has_keys


def test_without_keys_everything_is_open_but_the_admin_routes(serve: Serve):
    client = serve()
    assert client.get("/info").status_code == 200
    refused = client.post("/admin/reload", json={})
    assert (refused.status_code, refused.json()["code"]) == (403, "key_insufficient")


def test_keys_do_not_show_in_settings():
    assert "w-2" not in repr(Settings(**KEYS))
