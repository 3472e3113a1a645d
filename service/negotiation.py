"""Which of the offered representations the client accepts (RFC 9110 §12.5.1)."""

from starlette.requests import Request

from service.problems import RequestError

JSON = "application/json"


def choose(accept: str | None, offers: tuple[str, ...]) -> str:
    """Return the offer that `accept` likes best; the earlier one where it likes two the same.

    Raises:
        RequestError: `not_acceptable`, when it likes none.
    """
    ranges = [_parse(part) for part in (accept or "*/*").split(",") if part.strip()]
    liked = max(offers, key=lambda offer: _quality(offer, ranges))
    if _quality(liked, ranges) <= 0:
        raise RequestError("not_acceptable", f"expected Accept to allow {' or '.join(offers)}")
    return liked


def accepts_json(request: Request) -> None:
    """Refuse, before the body is read, a client that will not take JSON."""
    choose(request.headers.get("accept"), (JSON,))


def _parse(part: str) -> tuple[str, float]:
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
    return media, quality if 0 <= quality <= 1 else 0.0


def _quality(offer: str, ranges: list[tuple[str, float]]) -> float:
    """Return the quality of the most specific range that covers the offer."""
    for pattern in (offer, offer.partition("/")[0] + "/*", "*/*"):
        found = [quality for media, quality in ranges if media == pattern]
        if found:
            return max(found)
    return 0.0
