"""Principal components: the 128-d head that needs no training, and the raw-pixel baseline.

Where vectors are made of blocks (the stages of a network), each block is first scaled to the same total variance:
a stage's say must not depend on how large its activations happen to be.

Whitening divides each component by its standard deviation to the power `whiten`. In a young network a few
directions (brightness, size of the object) hold most of the variance and drown the rest in a cosine.

Shapes: N vectors, F features, D components.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.knn import Vectors, normalise

_ROWS = 65_536  # a fit looks at no more, evenly spaced: more do not move 128 directions of a few thousand features
_FLOOR = 1e-6  # of the largest standard deviation; directions without variance stay without weight


@dataclass(frozen=True)
class Pca:
    """An affine map: (vectors - mean) @ components.

    Attributes:
        mean: float32 (F,).
        components: float32 (F, D), block scales and whitening included.
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]

    def __call__(self, vectors: Vectors) -> Vectors:
        """Return the unit rows (N, D) of vectors (N, F)."""
        return unit(((vectors - self.mean) @ self.components).astype(np.float32))


def fit_pca(vectors: Vectors, dim: int, whiten: float = 0.0, blocks: Sequence[int] = ()) -> Pca:
    """Fit the `dim` directions of largest variance of vectors (N, F); missing ones (F < dim) are zero.

    Of more than 65,536 vectors it looks at evenly spaced ones.

    Args:
        vectors: float32 (N, F).
        dim: D.
        whiten: 0 to 1, see the file's docstring.
        blocks: widths that add up to F; none is one block.

    The covariance or, where there are fewer vectors than features, the Gram matrix is decomposed in float64:
    exact, deterministic, and never larger than min(N, F)².
    """
    vectors = vectors[:: max(1, -(-len(vectors) // _ROWS))]
    count, features = vectors.shape
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors.astype(np.float64) - mean
    scales = _balance(centred, blocks)
    centred *= scales
    if features <= count:
        variances, directions = np.linalg.eigh(centred.T @ centred / count)
    else:
        variances, samples = np.linalg.eigh(centred @ centred.T / count)
        deviation = np.sqrt(np.maximum(variances, variances[-1] * _FLOOR**2) * count)
        directions = centred.T @ samples / deviation
    order = np.argsort(variances)[::-1][:dim]
    deviations = np.sqrt(np.maximum(variances[order], 0))
    used = deviations > _FLOOR * deviations[0]
    scale = np.where(used, np.where(used, deviations, 1) ** -whiten, 0)
    components = np.zeros((features, dim))
    components[:, : len(order)] = directions[:, order] * scale
    return Pca(mean.astype(np.float32), (scales[:, None] * components).astype(np.float32))


def _balance(centred: NDArray[np.float64], blocks: Sequence[int]) -> NDArray[np.float64]:
    """Return the factor of each feature, (F,), that gives every block the same total variance."""
    scales = np.ones(centred.shape[1])
    start = 0
    for width in blocks:
        block = slice(start, start + width)
        total = np.square(centred[:, block]).sum(axis=1).mean()
        scales[block] = 1 / np.sqrt(total) if total > 0 else 1.0
        start += width
    return scales


def unit(vectors: Vectors) -> Vectors:
    """Return unit rows; a zero row, which has no direction, gets an arbitrary fixed one."""
    empty = ~vectors.any(axis=1)
    if empty.any():
        vectors = vectors.copy()
        vectors[empty, 0] = 1
    return normalise(vectors)
