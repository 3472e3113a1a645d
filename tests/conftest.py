"""Fixtures that need neither torch nor a network: a tiny real encoder, coloured shapes, their bank."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from index.encoder import Encoder

SHAPES = ("circle", "square", "stripes", "triangle")


def draw_shape(kind: str, seed: int, side: int = 48) -> Image.Image:
    """Draw one shape in a random colour, place and size on white."""
    rng = np.random.default_rng((SHAPES.index(kind), seed))
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    colour = tuple(int(value) for value in rng.integers(0, 160, 3))
    left, top = (int(value) for value in rng.integers(2, side // 4, 2))
    size = int(rng.integers(side // 2, side * 2 // 3))
    box = (left, top, left + size, top + size)
    if kind == "circle":
        pen.ellipse(box, fill=colour)
    elif kind == "square":
        pen.rectangle(box, fill=colour)
    elif kind == "triangle":
        pen.polygon([(left, top + size), (left + size, top + size), (left + size // 2, top)], fill=colour)
    else:
        for offset in range(0, size, 8):
            pen.rectangle((left, top + offset, left + size, top + offset + 3), fill=colour)
    return image


def png(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def shape_png() -> Callable[[str, int], bytes]:
    return lambda kind, seed: png(draw_shape(kind, seed))


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four class folders of eight pictures each."""
    root = tmp_path_factory.mktemp("shapes")
    for kind in SHAPES:
        (root / kind).mkdir()
        for seed in range(8):
            (root / kind / f"{seed}.png").write_bytes(png(draw_shape(kind, seed)))
    return root


@pytest.fixture(scope="session")
def tiny_encoder_path() -> Path:
    """A real encoder of 100 kB (tests/data/build_tiny_encoder.py): serving is tested without torch and onnx."""
    return Path(__file__).parent / "data" / "tiny_encoder.onnx"


@pytest.fixture(scope="session")
def tiny_encoder(tiny_encoder_path: Path) -> Encoder:
    return Encoder.load(tiny_encoder_path, threads=1)


@pytest.fixture
def other_encoder_path(tiny_encoder_path: Path, tmp_path: Path) -> Path:
    """The same weights under another name: a valid encoder with another identity."""
    data = tiny_encoder_path.read_bytes()
    assert data.count(b"tiny-0") == 1
    path = tmp_path / "other.onnx"
    path.write_bytes(data.replace(b"tiny-0", b"tiny-1"))
    return path
