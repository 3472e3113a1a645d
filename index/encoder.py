"""The encoder: one ONNX file that carries its own description, and the runtime around it.

Contract (docs/artifacts.md): input `images` uint8 (B, H, W, 3) RGB, output `embeddings` float32 (B, D) of unit
length; the description is JSON under `encoder_spec` in the file's metadata. Scaling, normalisation, projection
and the L2 norm are in the graph; geometry is `index.images`, with the parameters that the description holds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from PIL import Image

from index import images
from index.cores import available_cores
from index.errors import EncoderError, ExtraMissingError, LookalikeError
from index.files import sha256_file
from index.images import DEFAULT_LIMITS, ImageLimits, Pixels, Preprocess
from index.knn import Vectors, normalise

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SPEC_KEY = "encoder_spec"
FORMAT_VERSION = 1
# Least cosine between the recorded canary and this machine's. Runtimes and CPUs differ by rounding (1e-6); a
# wrong colour order, resize or a damaged weight moves it by far more.
CANARY_COSINE = 1 - 1e-4


@dataclass(frozen=True)
class KnnReport:
    """The accuracy that export measured, with all that makes it a number.

    Attributes:
        k, temperature: the protocol.
        top1: share (0 to 1) with the head that was kept.
        feature_top1: the same with the backbone's pooled features.
        split: who votes for whom, e.g. "leave-one-out" or "train → test".
        items: number of labelled pictures that were classified.
    """

    k: int
    temperature: float
    top1: float
    feature_top1: float
    split: str
    items: int


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder says about itself.

    Attributes:
        name: for people, e.g. "npid-demo".
        method: pretraining method, e.g. "npid".
        backbone: e.g. "resnet18".
        dim: D, the width of an embedding.
        preprocess: the geometry it expects.
        head: "projection" (trained) or "pca" (fitted on the pooled features).
        recipe: every setting of the training run.
        trained_on: what the pictures were (count, classes, where from).
        git_commit: of the code that trained it, or "unknown".
        knn: measured accuracy; None without labels.
        canary: embedding of `canary_png()`, recomputed at every load.
        precision: of the convolutions; files from before there was a choice do not say "float32".
    """

    name: str
    method: str
    backbone: str
    dim: int
    preprocess: Preprocess
    head: Literal["projection", "pca"]
    canary: tuple[float, ...]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    git_commit: str = "unknown"
    knn: KnnReport | None = None
    format_version: int = FORMAT_VERSION
    precision: Literal["float32", "int8"] = "float32"

    def to_json(self) -> str:
        """Return the description as JSON with stable key order."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a description.

        Raises:
            EncoderError: not JSON, a newer format, or missing and unknown keys.
        """
        try:
            values = json.loads(text)
            version = values["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise EncoderError("expected a JSON encoder_spec with a format_version, got something else") from error
        if version != FORMAT_VERSION:
            raise EncoderError(
                f"expected encoder format {FORMAT_VERSION}, got {version!r}; export it again, or upgrade Lookalike"
            )
        try:
            values["preprocess"] = Preprocess(**values["preprocess"])
            values["knn"] = KnnReport(**values["knn"]) if values["knn"] else None
            values["canary"] = tuple(float(value) for value in values["canary"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise EncoderError(f"expected a complete encoder_spec, got one with {error}") from error


def canary_png() -> bytes:
    """Return the fixed synthetic picture: a PNG of 96 × 64 pixels, taller waves than any resize keeps intact.

    It is asymmetric in both axes and in its channels, so that a flip, a transposition or a swapped colour order
    changes the embedding.
    """
    y, x = np.mgrid[0:64, 0:96]
    red = (x * 255) // 95
    green = (y * 255) // 63
    blue = ((x // 8 + y // 16) % 2) * 200 + (x * y) // 128
    out = BytesIO()
    Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


class Encoder:
    """An encoder that was loaded, checked and is ready to embed. Safe to share between threads."""

    def __init__(self, session: "InferenceSession", spec: EncoderSpec, path: Path, sha256: str) -> None:
        self._session = session
        self.spec = spec
        self.path = path
        self.sha256 = sha256

    @classmethod
    def load(cls, path: Path | str, *, threads: int | None = None, check_canary: bool = True) -> Self:
        """Load `encoder.onnx` and prove that it computes here what it computed where it was exported.

        Args:
            path: the file.
            threads: intra-operation threads; None takes the cores this process may use.
            check_canary: False only for the exporter, which has no canary yet.

        Raises:
            EncoderError: missing or damaged file, wrong signature or description, or a canary that differs.
            ExtraMissingError: ONNX Runtime is not installed.
        """
        path = Path(path)
        if not path.is_file():
            raise EncoderError(
                f"expected an encoder at {path}, got no such file; `python -m training export` makes one"
            )
        session = _open_session(path, threads or available_cores())
        text = session.get_modelmeta().custom_metadata_map.get(SPEC_KEY)
        if text is None:
            raise EncoderError(f"expected {path} to carry an {SPEC_KEY}, got a plain ONNX model; export it again")
        encoder = cls(session, EncoderSpec.from_json(text), path, sha256_file(path))
        encoder._check_signature()
        if check_canary:
            encoder.check_canary()
        return encoder

    @property
    def dim(self) -> int:
        """D, the width of an embedding."""
        return self.spec.dim

    def embed(self, pixels: Pixels) -> Vectors:
        """Embed prepared pictures.

        Args:
            pixels: uint8 (B, H, W, 3), from `index.images.load` with this encoder's preprocess.

        Returns:
            float32 (B, D), unit rows.
        """
        if not len(pixels):
            return np.empty((0, self.dim), np.float32)
        return np.asarray(self._session.run(["embeddings"], {"images": pixels})[0], dtype=np.float32)

    def embed_pictures(self, pictures: Sequence[bytes], limits: ImageLimits = DEFAULT_LIMITS) -> Vectors:
        """Decode and embed encoded pictures: float32 (B, D), unit rows.

        Raises:
            ImageError: the first picture that cannot be used.
        """
        prepared = [images.load(picture, self.spec.preprocess, limits) for picture in pictures]
        side = self.spec.preprocess.crop
        return self.embed(np.stack(prepared) if prepared else np.empty((0, side, side, 3), np.uint8))

    def check_canary(self) -> None:
        """Recompute the canary through the whole path, PNG bytes included.

        Raises:
            EncoderError: it is not what the exporter saw.
        """
        recorded = np.asarray(self.spec.canary, dtype=np.float32)[None]
        try:
            now = self.embed_pictures([canary_png()])
            cosine = float(normalise(now, self.dim)[0] @ normalise(recorded, self.dim)[0])
        except EncoderError:
            raise
        except Exception as error:
            raise EncoderError(f"expected {self.path} to embed its canary, got: {error}") from error
        if cosine < CANARY_COSINE:
            raise EncoderError(
                f"expected {self.path} to give its recorded canary, got cosine {cosine:.6f}: the file is "
                "damaged, or this runtime differs; use the versions of constraints.txt, or export it again"
            )

    def _check_signature(self) -> None:
        inputs = [(node.name, node.type, node.shape[1:]) for node in self._session.get_inputs()]
        outputs = [(node.name, node.type, node.shape[1:]) for node in self._session.get_outputs()]
        side = self.spec.preprocess.crop
        expected = ([("images", "tensor(uint8)", [side, side, 3])], [("embeddings", "tensor(float)", [self.dim])])
        if (inputs, outputs) != expected:
            raise EncoderError(
                f"expected images uint8 (B, {side}, {side}, 3) → embeddings float32 (B, {self.dim}), "
                f"got {inputs} → {outputs}"
            )


def _open_session(path: Path, threads: int) -> "InferenceSession":
    try:
        import onnxruntime  # noqa: PLC0415 - heavy, and absent where only the catalogue is read
    except ImportError as error:
        raise ExtraMissingError(
            "embedding needs ONNX Runtime: pip install 'lookalike[service]' (or [gpu])"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning pool burns the cores that FAISS, decoding and the web server need between two batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    providers = [name for name in ("CUDAExecutionProvider",) if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, [*providers, "CPUExecutionProvider"])
    except LookalikeError:
        raise
    except Exception as error:  # the runtime's own types are private, and all mean: this is no usable model
        first_line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise EncoderError(
            f"expected an ONNX encoder at {path}, got a file that does not load: {first_line}"
        ) from error
