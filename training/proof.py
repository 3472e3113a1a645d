"""What an exported file must show before it gets its name: accuracy, parity with torch, int8 beside float32.

Everything is taken through ONNX Runtime and `index.knn`, that is, exactly as a service would answer.
"""

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from index.cores import available_cores
from index.encoder import Encoder, KnnReport
from index.errors import TrainingError
from index.images import Pixels
from index.knn import Vectors
from training.backbone import Network
from training.data import Pictures
from training.evaluation.knn import Embedded, Evaluation, embed
from training.evaluation.pca import unit
from training.graph import Graph

_BATCH = 64
_PARITY = 1e-4  # largest difference of a component of a unit vector; float32 rounding gives about 1e-6
_POINTS = 0.3  # of kNN accuracy that int8 may cost before it is said
_COMPARED = 512  # pictures of which both precisions' embeddings are compared
_SECONDS = 1.0  # of timing at each batch size


class Speed(NamedTuple):
    """Images per second of two encoders, medians of alternating runs, and the median of the runs' ratios."""

    batch: int
    before: float
    after: float
    ratio: float

    def __str__(self) -> str:
        return f"batch {self.batch}: {self.before:.0f} → {self.after:.0f} images/s ({self.ratio:.2f}×)"


@dataclass(frozen=True)
class Comparison:
    """Int8 beside float32; `str()` is its part of the report.

    Attributes:
        before, after: the kNN score (0 to 1) of float32 and of int8.
        cosine, least: mean and smallest cosine between both embeddings of a picture.
        calibrated_on: pictures that set the ranges.
        speeds: at each batch size.
    """

    before: float
    after: float
    cosine: float
    least: float
    calibrated_on: int
    speeds: tuple[Speed, ...]

    def __str__(self) -> str:
        change = 100 * (self.after - self.before)
        verdict = f"within {_POINTS}" if change >= -_POINTS else f"MORE than the {_POINTS} that int8 should cost"
        return (
            f"int8, calibrated on {self.calibrated_on} pictures: {self.before:.4f} → {self.after:.4f} "
            f"({change:+.2f} points, {verdict}); cosine to float32 {self.cosine:.4f}, least {self.least:.4f}\n"
            f"speed with {available_cores()} threads: {'; '.join(map(str, self.speeds))}"
        )


def measure(encoder: Encoder, evaluation: Evaluation) -> float:
    """Return the kNN score (0 to 1) of an exported encoder on the run's split."""
    train = embed_all(encoder, evaluation.train.prepared)
    other = None
    if not evaluation.train.labelled:
        other = embed_all(encoder, evaluation.view_pixels())
    elif evaluation.test is not None:
        other = embed_all(encoder, evaluation.test.prepared)
    return evaluation.score(train, other)


def knn_report(evaluation: Evaluation, top1: float, network: Network, train: Embedded) -> KnnReport | None:
    """Return the measured accuracy with its protocol, None without labels.

    Args:
        evaluation: pictures and protocol.
        top1: measured with the exported file.
        network: whose pooled features are measured beside it.
        train: the training pictures as it sees them.
    """
    if not evaluation.train.labelled:
        return None
    features = unit(train.features)
    tested = evaluation.test
    other = unit(embed(network, tested.prepared).features) if tested is not None else None
    judged = evaluation.train if tested is None else tested
    return KnnReport(
        k=evaluation.protocol.k,
        temperature=evaluation.protocol.temperature,
        top1=top1,
        feature_top1=evaluation.score(features, other),
        split=evaluation.split,
        items=int((judged.labels >= 0).sum()),
    )


def prove_parity(graph: Graph, encoder: Encoder, pictures: Pictures) -> float:
    """Return the largest difference between torch and ONNX Runtime on real pictures, in batches of 1 and 5.

    Raises:
        TrainingError: it is more than rounding.
    """
    worst = 0.0
    for batch in (1, 5):
        pixels = np.asarray(pictures.prepared[:batch])
        with torch.inference_mode():
            expected: NDArray[np.float32] = graph(torch.from_numpy(pixels)).numpy()
        worst = max(worst, float(np.abs(expected - encoder.embed(pixels)).max()))
    if not worst <= _PARITY:
        raise TrainingError(
            f"expected ONNX Runtime to agree with torch within {_PARITY:g}, got {worst:.2e}; nothing was written. "
            "Train longer if the run was of a few steps (features that hardly differ whiten into noise), or use "
            "the versions of constraints.txt"
        )
    return worst


def compare(
    before: Encoder, score: float, after: Encoder, evaluation: Evaluation, calibrated_on: int
) -> Comparison:
    """Measure an int8 encoder beside the float32 one that it was made of, whose kNN score is known."""
    prepared = evaluation.train.prepared
    some = np.ascontiguousarray(prepared[:: -(-len(prepared) // _COMPARED)])
    cosines = np.sum(embed_all(before, some) * embed_all(after, some), axis=1)
    return Comparison(
        before=score,
        after=measure(after, evaluation),
        cosine=float(cosines.mean()),
        least=float(cosines.min()),
        calibrated_on=calibrated_on,
        speeds=tuple(time_beside(before, after, some, batch) for batch in (1, 32)),
    )


def time_beside(before: Encoder, after: Encoder, pixels: Pixels, batch: int, seconds: float = _SECONDS) -> Speed:
    """Time two encoders in turns, so that a busy moment hits both."""
    pixels = np.resize(pixels, (batch, *pixels.shape[1:]))
    spent: tuple[list[float], list[float]] = ([], [])
    for encoder in (before, after):
        encoder.embed(pixels)  # the first run allocates
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(spent[0]) < 3:
        for encoder, times in zip((before, after), spent, strict=True):
            start = time.perf_counter()
            encoder.embed(pixels)
            times.append(time.perf_counter() - start)
    old, new = np.array(spent[0]), np.array(spent[1])
    return Speed(batch, batch / float(np.median(old)), batch / float(np.median(new)), float(np.median(old / new)))


def embed_all(encoder: Encoder, pixels: Pixels) -> Vectors:
    """Embed any number of prepared pictures in batches: float32 (N, D), unit rows."""
    parts = [encoder.embed(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
    return np.concatenate(parts)
