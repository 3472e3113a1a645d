"""The decode contract, mode by mode, against NumPy written out; golden pixels hold it still."""

import hashlib
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from index.errors import ImageDecodeError, ImageError, ImageShapeError, ImageTooLargeError, UnknownFormatError
from index.images import ImageLimits, Preprocess, apply, decode, load, sniff, thumbnail


def encode(image: Image.Image, kind: str, **options) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def scene(width: int = 60, height: int = 40) -> Image.Image:
    """Smooth colours with a red corner at the top left: lossy formats keep it, flips show."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([255 - x * 3, y * 5, x + y], axis=-1).clip(0, 255).astype(np.uint8)
    rgb[: height // 4, : width // 4] = (255, 0, 0)
    return Image.fromarray(rgb)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data)).astype(int)


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95}, 6),
        ("GIF", {}, 12),
    ],
)
def test_each_format_gives_the_picture(kind, options, tolerance):
    data = encode(scene(), kind, **options)
    assert sniff(data) == kind
    assert np.abs(pixels(data) - np.asarray(scene())).mean() <= tolerance


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html></html>",
        b"<svg/>",
        b"%PDF-1.7",
        b"%!PS-Adobe",
        b"8BPS",
        b"RIFF\0\0\0\0WAVE",
        b"\0" * 64,
        b"icns",
    ],
)
def test_anything_else_is_refused_by_its_first_bytes(data):
    with pytest.raises(UnknownFormatError):
        decode(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_rotated_photo_equals_its_upright_copy(orientation, kind):
    sideways = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    stored = Image.fromarray(np.ascontiguousarray(sideways(np.asarray(scene()))))
    found = pixels(encode(stored, kind, exif=exif, **options))
    assert found.shape == (40, 60, 3)
    assert np.abs(found - np.asarray(scene())).mean() <= (6 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so; the command lines keep it quiet
def test_malformed_exif_is_ignored():
    data = encode(scene(), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xffgarbage")
    assert pixels(data).shape == (40, 60, 3)


def test_alpha_lies_over_white():
    rgb = np.asarray(scene()).astype(float)
    alpha = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))
    rgba = Image.fromarray(np.dstack([np.asarray(scene()), alpha]))
    weight = alpha[..., None] / 255
    expected = rgb * weight + 255 * (1 - weight)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert np.abs(pixels(encode(rgba, kind, **options)) - expected).max() <= 1.01


def test_palette_and_grey_transparency_lie_over_white():
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    found = pixels(encode(palette, "PNG", transparency=1))
    assert found.tolist() == [[[10, 20, 30], [255] * 3], [[255] * 3, [10, 20, 30]]]
    grey = Image.fromarray(np.array([[7, 90], [90, 7]], np.uint8))
    found = pixels(encode(grey, "PNG", transparency=90))
    assert found[..., 0].tolist() == [[7, 255], [255, 7]]


def test_grey_and_one_bit_become_equal_channels():
    grey = scene().convert("L")
    assert (pixels(encode(grey, "PNG")) == np.asarray(grey)[..., None]).all()
    bits = grey.point(lambda value: 255 * (value > 128)).convert("1")
    assert (pixels(encode(bits, "PNG")) == np.asarray(bits.convert("L"))[..., None]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    deep = np.linspace(0, 65535, 64 * 8).astype(np.uint16).reshape(8, 64)
    found = pixels(encode(Image.fromarray(deep), kind))
    assert np.array_equal(found[..., 0], np.rint(deep / 257).astype(int))


def test_thirty_two_bit_grey_is_stretched_between_its_own_ends():
    values = np.array([[-1.0, 0.0], [1.0, np.nan]], np.float32)
    assert pixels(encode(Image.fromarray(values), "TIFF"))[..., 0].tolist() == [[0, 128], [255, 0]]
    flat = np.full((4, 4), 7, np.int32)
    assert not pixels(encode(Image.fromarray(flat), "TIFF")).any()


def test_cmyk_is_converted():
    data = encode(scene().convert("CMYK"), "JPEG", quality=95)
    assert np.abs(pixels(data) - np.asarray(scene())).mean() <= 8


def test_the_first_frame_stands_for_an_animation():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(pixels(data) - [255, 0, 0]).max() <= 3


def png_header(width: int, height: int) -> bytes:
    """Write a PNG that declares a size and holds no pixels: only a header check can refuse it in time."""

    def chunk(body: bytes) -> bytes:
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT")


@pytest.mark.parametrize(
    ("width", "height", "error"),
    [
        (10_000, 10_000, ImageTooLargeError),
        (60_000, 60_000, ImageTooLargeError),
        (40_000, 1_000, ImageTooLargeError),
        (1, 1, ImageShapeError),
        (1_000, 10, ImageShapeError),
        (10, 1_000, ImageShapeError),
    ],
)
def test_sizes_are_refused_from_the_header(width, height, error):
    with pytest.raises(error, match=f"{width} × {height}"):
        decode(png_header(width, height))


def test_bytes_are_limited():
    with pytest.raises(ImageTooLargeError, match="bytes"):
        decode(encode(scene(), "BMP"), limits=ImageLimits(max_bytes=1000))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_pictures_are_refused(kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)  # so that the bytes are pixels
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * share)])


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]), st.data())
@settings(max_examples=300, deadline=None)
def test_flipped_bytes_give_a_picture_or_one_of_our_errors(kind, data):
    mutated = bytearray(encode(scene(), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = load(bytes(mutated), Preprocess(16, 16))
    except ImageError:
        return
    assert found.shape == (16, 16, 3)


def test_a_text_chunk_bomb_is_a_decode_error():
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "x" * (8 * 2**20), zip=True)
    with pytest.raises(ImageDecodeError):
        decode(encode(scene(), "PNG", pnginfo=info))


# ------------------------------------------------------------------------------------------------ geometry


def test_the_centre_crop_is_resize_then_cut():
    image = scene(120, 80)
    got = apply(image, Preprocess(40, 40)).astype(int)
    expected = np.asarray(image.resize((60, 40), Image.Resampling.BILINEAR)).astype(int)[:, 10:50]
    assert np.abs(got - expected).max() <= 1


def test_a_smaller_crop_cuts_the_middle():
    image = scene(80, 80)
    got = apply(image, Preprocess(40, 32)).astype(int)
    expected = np.asarray(image.resize((40, 40), Image.Resampling.BILINEAR)).astype(int)[4:36, 4:36]
    assert np.abs(got - expected).max() <= 1


def test_padding_keeps_the_whole_picture_on_white():
    got = apply(Image.new("RGB", (90, 30), "black"), Preprocess(30, 36, fit="pad"))
    assert got.shape == (36, 36, 3)
    dark = np.argwhere(got[..., 0] == 0)
    assert dark.min(axis=0).tolist() == [13, 3]
    assert dark.max(axis=0).tolist() == [22, 32]


def test_a_crop_larger_than_the_resize_has_a_white_border():
    got = apply(Image.new("RGB", (50, 50), "black"), Preprocess(20, 30))
    assert (got[0] == 255).all()
    assert (got[15, 15] == 0).all()


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(2, 3), (3, 150), (640, 480), (33, 32)])
def test_every_picture_fills_the_square(fit, size):
    assert load(encode(scene(*size), "PNG"), Preprocess(24, 24, fit=fit)).shape == (24, 24, 3)


def test_downsizing_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    got = load(encode(Image.fromarray(stripes), "PNG"), Preprocess(32, 32)).astype(int)
    assert np.abs(got - 127).max() <= 16  # without antialiasing: all black or all white


def test_scaled_jpeg_decoding_keeps_the_picture():
    big = scene(60, 40).resize((3000, 2000), Image.Resampling.BICUBIC)
    data = encode(big, "JPEG", quality=90)
    scaled = load(data, Preprocess(64, 64)).astype(float)
    full = apply(decode(data), Preprocess(64, 64)).astype(float)
    assert decode(data, target=64).width < 3000
    assert np.abs(scaled - full).max() <= 6
    a, b = scaled.ravel() - scaled.mean(), full.ravel() - full.mean()
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= 0.9999


def test_thumbnails_are_small_webp_without_metadata():
    exif = Image.Exif()
    exif[0x010F] = "camera with a secret"
    small = thumbnail(encode(scene(600, 400), "JPEG", exif=exif), 96)
    assert sniff(small) == "WEBP"
    assert Image.open(BytesIO(small)).size == (96, 64)
    assert b"secret" not in small
    assert b"EXIF" not in small


# -------------------------------------------------------------------------------------------- golden pixels

GOLDEN = {  # of lossless inputs, so that a codec's version cannot move them
    ("RGB", "crop"): "9827e528",
    ("RGB", "pad"): "f66fe48c",
    ("RGBA", "pad"): "3f7998b7",
    ("L", "crop"): "1b69dcb2",
    ("P", "crop"): "4d98b318",
    ("CMYK", "crop"): "9827e528",
}


@pytest.mark.parametrize(("mode", "fit"), GOLDEN)
def test_golden_pixels_hold_the_contract_still(mode, fit):
    image = scene(97, 61)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.tile(np.arange(97, dtype=np.uint8) * 2, (61, 1))))
    elif mode == "P":
        image = image.quantize(16, dither=Image.Dither.NONE)
    else:
        image = image.convert(mode)
    found = load(encode(image, "TIFF" if mode == "CMYK" else "PNG"), Preprocess(36, 32, "bicubic", fit))  # type: ignore[arg-type]
    assert hashlib.sha256(found.tobytes()).hexdigest()[:8] == GOLDEN[mode, fit]
