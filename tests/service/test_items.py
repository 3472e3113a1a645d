"""Items and their thumbnails: pages, ids with slashes, and no file outside the images folder."""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from index.encoder import Encoder
from index.items import Item
from index.manifest import EncoderIdentity
from index.memory_bank import MemoryBank
from index.retriever import Retriever
from service import schemas

Serve = Callable[..., TestClient]


def test_an_item_is_found_by_an_id_with_slashes_encoded_or_not(client: TestClient):
    plain, encoded = client.get("/items/circle/0.png"), client.get("/items/circle%2F0.png")
    schemas.ItemAnswer.model_validate_json(plain.content)
    assert plain.json() == encoded.json()
    assert plain.json()["item"] == {
        "id": "circle/0.png",
        "label": "circle",
        "uri": "circle/0.png",
        "metadata": {"seed": 0, "note": "<b>café</b>"},
    }


def test_pages_give_every_item_once_in_order(client: TestClient):
    ids, after = [], None
    for _ in range(20):
        page = client.get("/items", params={"limit": 7} | ({"after": after} if after else {}))
        schemas.ItemsAnswer.model_validate_json(page.content)
        ids += [item["id"] for item in page.json()["items"]]
        after = page.json()["next"]
        if after is None:
            break
    assert len(ids) == len(set(ids)) == 32
    assert client.get("/items?limit=32").json()["next"] is None


def test_a_page_can_be_of_one_label(client: TestClient):
    items = client.get("/items", params={"label": "stripes", "limit": 100}).json()["items"]
    assert len(items) == 8
    assert {item["label"] for item in items} == {"stripes"}
    assert client.get("/items?label=nothing").json()["items"] == []


def test_a_thumbnail_is_encoded_anew_small_and_cached(client: TestClient):
    answer = client.get("/items/circle/0.png/thumbnail")
    assert answer.headers["content-type"] == "image/webp"
    image = Image.open(BytesIO(answer.content))
    assert (image.format, image.size) == ("WEBP", (48, 48))
    again = client.get("/items/circle/0.png/thumbnail", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "max-age" in answer.headers["cache-control"]


def test_without_an_images_folder_there_are_no_thumbnails(serve: Serve):
    answer = serve().get("/items/circle/0.png/thumbnail")
    assert (answer.status_code, answer.json()["code"]) == (404, "thumbnail_not_found")


@pytest.fixture
def prowling(
    tmp_path: Path, tiny_encoder: Encoder, shape_png: Callable[[str, int], bytes], serve: Serve
) -> TestClient:
    """A bank whose uris try to leave the folder."""
    root, outside = tmp_path / "images", tmp_path / "images-secret"
    root.mkdir()
    outside.mkdir()
    picture = shape_png("circle", 0)
    exif = Image.Exif()
    exif[0x010F] = "camera of a certain maker"
    Image.open(BytesIO(picture)).resize((600, 300)).save(root / "good.jpg", exif=exif)
    (outside / "secret.png").write_bytes(picture)
    (root / "text.png").write_text("root:x:0:0")
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "inner.jpg").symlink_to(root / "good.jpg")
    (root / "loop").symlink_to(root / "loop")
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    uris = {
        "good": "good.jpg", "inner": "inner.jpg", "up": "../images-secret/secret.png", "link": "link.png",
        "absolute": str(outside / "secret.png"), "folder": "folder.png", "pipe": "pipe.png", "loop": "loop",
        "text": "text.png", "missing": "missing.png", "empty": None, "long": "a" * 4000, "root": ".",
        "url": "file:///etc/passwd",
    }  # fmt: skip
    with MemoryBank.create(tmp_path / "bank", encoder=EncoderIdentity.of(tiny_encoder)) as bank:
        items = [Item(id=name, uri=uri) for name, uri in uris.items()]
        bank.add(items, tiny_encoder.embed_pictures([picture] * len(items)))
        yield serve(Retriever(tiny_encoder, bank), images=root)


@pytest.mark.parametrize("id_", ["good", "inner"])
def test_a_picture_in_the_folder_is_shown_without_its_metadata(prowling: TestClient, id_: str):
    answer = prowling.get(f"/items/{id_}/thumbnail")
    assert answer.status_code == 200
    image = Image.open(BytesIO(answer.content))
    assert image.size == (256, 128)
    assert not image.getexif()
    assert b"certain maker" not in answer.content


@pytest.mark.parametrize(
    "id_", ["up", "link", "absolute", "folder", "pipe", "loop", "text", "missing", "empty", "long", "root", "url"]
)
def test_nothing_else_is_shown_and_nobody_learns_what_is_there(prowling: TestClient, id_: str):
    answer = prowling.get(f"/items/{id_}/thumbnail")
    assert (answer.status_code, answer.json()["code"]) == (404, "thumbnail_not_found")
    assert "secret" not in answer.text


def test_a_picture_over_the_limit_is_not_read(serve: Serve, shapes_folder: Path):
    client = serve(images=shapes_folder, max_pixels=100)
    assert client.get("/items/circle/0.png/thumbnail").json()["code"] == "thumbnail_not_found"
