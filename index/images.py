"""Bytes to pixels: the decode contract, one function for training, export, indexing and serving alike.

    magic bytes → header limits → first frame → upright (EXIF) → RGB over white → one antialiased resize

The same picture must become the same array whoever asks, or the neighbours that a service finds are not
those that training measured. `docs/artifacts.md` publishes the contract, golden vectors in the tests hold it
still. ICC profiles are ignored: they may be absent, broken or hostile, and the encoders learn from raw RGB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from index.errors import ImageDecodeError, ImageShapeError, ImageTooLargeError, UnknownFormatError

Pixels = NDArray[np.uint8]

# Opened by class, not by Image.open: only these parsers ever see a byte, and no plugin is probed in turn.
_PARSERS: dict[str, Callable[[BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),  # BigTIFF
    (b"MM\x00+", "TIFF"),
)
_UPRIGHT = {  # EXIF orientation → what brings the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INTERPOLATION = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# A scaled JPEG decode stays at least this many times larger than the resize that follows, so that the resize
# still does the antialiasing (Pillow's notes call a gap of 3 indistinguishable from the full decode).
_SCALED_DECODE_GAP = 3


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may be. All of it is read from the header, before a pixel is decoded.

    Attributes:
        max_bytes: encoded size in bytes.
        max_pixels: width × height.
        max_side: longer side in pixels.
        min_side: shorter side in pixels.
        max_aspect: longer side ÷ shorter side.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 50_000_000
    max_side: int = 32_768
    min_side: int = 2
    max_aspect: float = 50.0


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True)
class Preprocess:
    """The geometry that an encoder expects; it travels in the encoder's file.

    Attributes:
        resize: side in pixels that the picture is resized to: the short side for `fit="crop"`, the long side
            for `fit="pad"`.
        crop: side in pixels of the square that the encoder sees.
        interpolation: always antialiased.
        fit: "crop" cuts the centre; "pad" keeps the whole picture, centred on white.
    """

    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    fit: Literal["crop", "pad"] = "crop"


def sniff(data: bytes) -> str:
    """Return the format ("JPEG", "PNG", "WEBP", "BMP", "GIF" or "TIFF") by the first bytes.

    Raises:
        UnknownFormatError: for anything else; file names and declared types do not count.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    got = "an empty file" if not data else f"first bytes {data[:8].hex(' ')}"
    raise UnknownFormatError(f"expected a JPEG, PNG, WebP, BMP, GIF or TIFF picture, got {got}")


def decode(data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS, target: int | None = None) -> Image.Image:
    """Decode a picture to upright 8-bit RGB.

    Args:
        data: the encoded picture.
        limits: checked against the header, before decoding.
        target: the shorter side in pixels that will be needed; a JPEG may then be decoded at 1/2, 1/4 or 1/8
            of its size, never below three times the target. None decodes every pixel.

    Raises:
        UnknownFormatError, ImageTooLargeError, ImageShapeError, ImageDecodeError.
    """
    if len(data) > limits.max_bytes:
        raise ImageTooLargeError(f"expected at most {limits.max_bytes:,} bytes a picture, got {len(data):,}")
    name = sniff(data)
    try:
        image = _PARSERS[name](BytesIO(data))
    except Exception as error:  # Pillow's parsers raise a dozen types on bad bytes; all mean the same here
        raise ImageDecodeError(f"expected a readable {name} header, got a damaged one") from error
    _check_header(image.size, limits)
    if target is not None and name == "JPEG":
        shrink = min(image.size) / (target * _SCALED_DECODE_GAP)
        image.draft(None, (int(image.width / max(shrink, 1)), int(image.height / max(shrink, 1))))
    try:
        image.load()
        turn = _UPRIGHT.get(_orientation(image))  # after load: the TIFF parser turns, and clears the tag, itself
        return _to_rgb(image if turn is None else image.transpose(turn))
    except MemoryError:
        raise
    except Exception as error:
        raise ImageDecodeError(f"expected a whole {name} picture, got truncated or corrupt pixels") from error


def apply(image: Image.Image, preprocess: Preprocess) -> Pixels:
    """Resize and crop (or pad) in one antialiased step.

    Args:
        image: upright RGB, from `decode`.
        preprocess: the encoder's geometry.

    Returns:
        uint8 (crop, crop, 3), RGB.
    """
    crop, interpolation = preprocess.crop, _INTERPOLATION[preprocess.interpolation]
    if preprocess.fit == "pad":
        scale = preprocess.resize / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        canvas = Image.new("RGB", (crop, crop), "white")
        resized = image.resize((width, height), interpolation)
        canvas.paste(resized, ((crop - width) // 2, (crop - height) // 2))
        return np.asarray(canvas)
    # Cropping the centre of the resized picture is resizing the matching centre of the original.
    side = min(image.size) * crop / preprocess.resize
    left, top = (image.width - side) / 2, (image.height - side) / 2
    if side > min(image.size):  # a crop larger than the resize: the border is white
        grown = Image.new("RGB", (int(np.ceil(side)), int(np.ceil(side))), "white")
        grown.paste(image, ((grown.width - image.width) // 2, (grown.height - image.height) // 2))
        return np.asarray(grown.resize((crop, crop), interpolation))
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((crop, crop), interpolation, box=box))


def load(data: bytes, preprocess: Preprocess, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """Turn an encoded picture into what the encoder takes: the whole decode contract.

    Returns:
        uint8 (crop, crop, 3), RGB.

    Raises:
        UnknownFormatError, ImageTooLargeError, ImageShapeError, ImageDecodeError.
    """
    return apply(decode(data, limits=limits, target=preprocess.resize), preprocess)


def thumbnail(data: bytes, side: int, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """Re-encode a picture as a WebP of at most `side` pixels a side, without any metadata (no EXIF, no GPS)."""
    image = decode(data, limits=limits, target=side)
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    out = BytesIO()
    Image.fromarray(np.asarray(image)).save(out, "WEBP", quality=82, method=2)
    return out.getvalue()


def _check_header(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"expected at most {limits.max_pixels:,} pixels, got {width} × {height} = {width * height:,}; reduce it"
        )
    if max(size) > limits.max_side:
        raise ImageTooLargeError(f"expected sides of at most {limits.max_side} pixels, got {width} × {height}")
    if min(size) < limits.min_side:
        raise ImageShapeError(f"expected sides of at least {limits.min_side} pixels, got {width} × {height}")
    if max(size) > limits.max_aspect * min(size):
        raise ImageShapeError(
            f"expected a longer side of at most {limits.max_aspect:g} times the shorter, got {width} × {height}"
        )


def _orientation(image: ImageFile.ImageFile) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - malformed EXIF is common and says nothing about the pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Bring any mode to RGB: alpha over white, deep grey scaled instead of clipped."""
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((deep * 255 + 32_767) // 65_535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_stretch(np.asarray(image, dtype=np.float64))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _stretch(values: NDArray[np.float64]) -> Pixels:
    """Scale 32-bit grey linearly from its own minimum and maximum to 0…255: such pictures fix no white."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low, high = values[finite].min(), values[finite].max()
    scaled = (np.where(finite, values, low) - low) / max(high - low, np.finfo(np.float64).tiny) * 255
    return np.asarray(np.rint(scaled), dtype=np.uint8)
