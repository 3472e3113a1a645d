"""The pair of encoder and bank at work: loaded, warmed up, and kept off the event loop.

Decoding, embedding and searching are CPU work in NumPy, ONNX Runtime and FAISS, which all release the GIL.
They run in a pool of as many threads as the service may use, so the loop stays free to answer; the number of
waiting jobs is bounded by the number of requests that `limits.Admission` lets in.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from index import images
from index.encoder import Encoder, canary_png
from index.errors import ImageError, LookalikeError, SettingsError
from index.knn import Vectors
from index.manifest import EncoderIdentity
from index.memory_bank import MemoryBank
from index.retriever import Retriever
from service import problems
from service.observability import Trace
from service.settings import Settings

T = TypeVar("T")

_log = logging.getLogger(__name__)


def load(settings: Settings) -> Retriever:
    """Open the encoder and the bank that the settings name.

    Raises:
        LookalikeError: either is missing, damaged, or they do not belong together.
    """
    if settings.encoder is None or settings.bank is None:
        raise SettingsError("expected an encoder and a bank, got none; pass --encoder FILE and --bank FOLDER")
    encoder = Encoder.load(settings.encoder, threads=settings.threads)
    bank = MemoryBank.open(settings.bank, encoder=EncoderIdentity.of(encoder), read_only=True)
    return Retriever(encoder, bank)


class Engine:
    """Answers with one (encoder, bank) pair, once it is ready.

    A route takes `retriever()` once and keeps it, so an answer never mixes two pairs.
    """

    def __init__(self, settings: Settings, retriever: Retriever | None = None) -> None:
        self.settings = settings
        self.reason = "the encoder and the bank are being loaded"
        self._given = retriever
        self._retriever: Retriever | None = None
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="engine")

    @property
    def ready(self) -> bool:
        """Whether questions can be answered; if not, `reason` says why."""
        return self._retriever is not None

    def retriever(self) -> Retriever:
        """Return the pair in service.

        Raises:
            RequestError: `not_ready`, with the reason.
        """
        if self._retriever is None:
            raise problems.RequestError("not_ready", self.reason)
        return self._retriever

    async def start(self) -> None:
        """Load what was not given, warm up, and only then be ready. A failure stays as the reason."""
        try:
            retriever = self._given or await self.run(load, self.settings)
            await self.run(_warm_up, retriever)
        except LookalikeError as error:
            self.reason = str(error)
            _log.error("not ready", extra={"fields": {"reason": self.reason}})
        except Exception:  # noqa: BLE001 - a bug in loading must leave a live process that says it is not ready
            self.reason = "the encoder and the bank could not be loaded; the log has the traceback"
            _log.exception("not ready")
        else:
            self._retriever = retriever

    async def stop(self) -> None:
        """Let running jobs end, then close the bank if this engine opened it."""
        retriever, self._retriever, self.reason = self._retriever, None, "the service is stopping"
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)
        if retriever is not None and self._given is None:
            retriever.bank.close()

    def run(self, function: Callable[..., T], *args: Any) -> Awaitable[T]:  # noqa: ANN401 - the function's own
        """Run CPU work in the pool."""
        return asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    async def embed(self, retriever: Retriever, pictures: Sequence[bytes], trace: Trace) -> Vectors:
        """Return the embeddings of encoded pictures, float32 (B, D), rows of unit length.

        Raises:
            RequestError: pictures that cannot be used, each with its position.
        """
        with trace.stage("decode"):
            outcomes = await asyncio.gather(
                *(self.run(self._decode, retriever, picture) for picture in pictures), return_exceptions=True
            )
        errors: list[problems.PositionedError] = []
        pixels: list[images.Pixels] = []
        for position, outcome in enumerate(outcomes):
            if isinstance(outcome, ImageError):
                code = problems.as_request_error(outcome).code
                errors.append({"position": position, "code": code, "detail": str(outcome)})
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                pixels.append(outcome)
        if errors:
            raise problems.together(errors, "pictures", len(pictures))
        with trace.stage("embed"):
            return await self.run(retriever.encoder.embed, np.stack(pixels))

    def _decode(self, retriever: Retriever, picture: bytes) -> images.Pixels:
        return images.load(picture, retriever.encoder.spec.preprocess, self.settings.image_limits)


def _warm_up(retriever: Retriever) -> None:
    """Take the canary the whole way once, so that no client pays for first allocations."""
    vectors = retriever.embed([canary_png()])
    if retriever.bank.count:
        retriever.search(vectors, k=1)
