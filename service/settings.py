"""Every setting of the service: its default, its meaning, and nothing hidden elsewhere.

Each is read from the environment as `LOOKALIKE_<NAME>` (lists as JSON), and the command line's options win.
"""

import ipaddress
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from index.cores import available_cores
from index.images import DEFAULT_LIMITS, ImageLimits


class Settings(BaseSettings):
    """What one service process is told, validated once and passed down."""

    model_config = SettingsConfigDict(env_prefix="LOOKALIKE_", extra="forbid", frozen=True)

    encoder: Annotated[Path | None, Field(description="the encoder file, encoder.onnx")] = None
    bank: Annotated[Path | None, Field(description="the memory bank's directory")] = None
    images: Annotated[Path | None, Field(description="the folder the items' uris lie in, for thumbnails")] = None

    host: Annotated[str, Field(description="address to listen on; other than loopback needs keys")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 8000
    insecure: Annotated[bool, Field(description="serve other addresses than loopback without keys")] = False
    allowed_hosts: Annotated[
        tuple[str, ...], Field(description="further Host names this service answers to, beside loopback's")
    ] = ()
    read_key: Annotated[SecretStr | None, Field(min_length=1, description="may embed, search and look")] = None
    write_key: Annotated[SecretStr | None, Field(min_length=1, description="may also change items")] = None
    admin_key: Annotated[SecretStr | None, Field(min_length=1, description="may do everything")] = None

    max_body_bytes: Annotated[int, Field(ge=1024, description="largest request body, in bytes")] = 32 * 2**20
    max_pictures: Annotated[int, Field(ge=1, description="most pictures in one request")] = 32
    max_queries: Annotated[int, Field(ge=1, description="most vectors or ids in one request")] = 1024
    max_k: Annotated[int, Field(ge=1, description="most neighbours a query may ask for")] = 1000
    max_neighbors: Annotated[int, Field(ge=1, description="most neighbours (or votes) in one answer")] = 65_536
    max_pixels: Annotated[int, Field(ge=1, description="largest width × height of a picture")] = (
        DEFAULT_LIMITS.max_pixels
    )
    max_side: Annotated[int, Field(ge=1, description="longest side of a picture, in pixels")] = (
        DEFAULT_LIMITS.max_side
    )
    min_side: Annotated[int, Field(ge=1, description="shortest side of a picture, in pixels")] = (
        DEFAULT_LIMITS.min_side
    )
    max_aspect: Annotated[float, Field(ge=1, description="longest side ÷ shortest side of a picture")] = (
        DEFAULT_LIMITS.max_aspect
    )

    threads: Annotated[int, Field(ge=1, description="CPU threads: decoding, and ONNX Runtime's")] = Field(
        default_factory=available_cores
    )
    max_concurrency: Annotated[int, Field(ge=1, description="requests in progress before 429")] = 64
    deadline_s: Annotated[float, Field(gt=0, description="seconds a request may take before 504")] = 30.0
    drain_s: Annotated[int, Field(ge=0, description="seconds that open requests get when stopping")] = 20

    @property
    def has_keys(self) -> bool:
        """Whether any key is configured; without one the service is open, on loopback."""
        return any((self.read_key, self.write_key, self.admin_key))

    @property
    def image_limits(self) -> ImageLimits:
        """What a picture may be; its bytes are bounded by the body that carries it."""
        return ImageLimits(
            max_bytes=self.max_body_bytes,
            max_pixels=self.max_pixels,
            max_side=self.max_side,
            min_side=self.min_side,
            max_aspect=self.max_aspect,
        )

    @model_validator(mode="after")
    def _refuse_open_doors(self) -> "Settings":
        if not (self.has_keys or self.insecure or is_loopback(self.host)):
            msg = (
                f"expected keys to serve {self.host}, which other machines can reach, got none; "
                "set LOOKALIKE_READ_KEY (and _WRITE_KEY, _ADMIN_KEY), listen on 127.0.0.1, or pass --insecure"
            )
            raise ValueError(msg)
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
