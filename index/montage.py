"""A query and its neighbours as one picture, for people to look at."""

from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from index.images import decode

_CELL, _CAPTION, _GAP = 144, 34, 8  # pixels
_INK, _ACCENT = "#1c1c1e", "#1769aa"


def montage(rows: Sequence[Sequence[tuple[bytes | None, str]]]) -> Image.Image:
    """Draw rows of captioned pictures; the first of each row is the query, framed.

    Args:
        rows: one row a query: (encoded picture or None when it cannot be shown, caption of up to two lines).

    Returns:
        RGB picture.
    """
    columns = max(len(row) for row in rows)
    step_x, step_y = _CELL + _GAP, _CELL + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * step_x + _GAP, len(rows) * step_y + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for y, row in enumerate(rows):
        for x, (picture, caption) in enumerate(row):
            left, top = _GAP + x * step_x, _GAP + y * step_y
            if picture is not None:
                image = decode(picture, target=_CELL)
                image.thumbnail((_CELL, _CELL))
                sheet.paste(image, (left + (_CELL - image.width) // 2, top + (_CELL - image.height) // 2))
            if x == 0:
                pen.rectangle((left - 3, top - 3, left + _CELL + 2, top + _CELL + 2), outline=_ACCENT, width=2)
            for line, text in enumerate(caption.splitlines()[:2]):
                pen.text((left, top + _CELL + 3 + 15 * line), _shorten(text, font), fill=_INK, font=font)
    return sheet


def montage_png(rows: Sequence[Sequence[tuple[bytes | None, str]]]) -> bytes:
    """Return `montage(rows)` as PNG bytes."""
    out = BytesIO()
    montage(rows).save(out, "PNG", optimize=True)
    return out.getvalue()


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while len(text) > 4 and font.getlength(text) > _CELL:
        text = text[: len(text) - 2].rstrip("…") + "…"
    return text
