"""Online evaluation: embed the pictures as the service will, and let neighbours vote by the one protocol.

With labels the number is an accuracy; leave-one-out over the training pictures (nothing but the instance's
identity was trained on), or train → test where test pictures are given. Without labels it is instance
retrieval: how often the nearest neighbour of a picture's random view is the picture itself.

Shapes: N pictures, F features, D dimension.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from index.errors import CollapseError, TrainingError
from index.images import Pixels
from index.knn import KnnProtocol, Vectors, accuracy, leave_one_out, top_k
from training.augment import view
from training.backbone import Network
from training.data import Pictures
from training.draws import Share
from training.evaluation.pca import Pca, fit_pca, unit
from training.recipes import Recipe

_BATCH = 256
_RETRIEVAL_VIEWS = 2048  # queries of the instance-retrieval score
_PIXEL_SIDE = 32  # of the pictures that the raw-pixel baseline compares
_PIXEL_SAMPLES = 10_000  # of them, evenly spaced, its components are fitted on


@dataclass(frozen=True)
class Embedded:
    """A set of pictures as the network sees it.

    Attributes:
        features: float32 (N, F), pooled, as they come.
        projection: float32 (N, D), unit rows; None where the method has no trained head.
        descriptor: float32 (N, G), all stages pooled.
        blocks: widths of the stages in the descriptor; they add up to G.
    """

    features: Vectors
    projection: Vectors | None
    descriptor: Vectors
    blocks: tuple[int, ...]

    def fit_pca(self, recipe: Recipe) -> Pca:
        """Fit a recipe's PCA head: descriptor (N, G) → (N, D)."""
        return fit_pca(self.descriptor, recipe.dim, recipe.whiten, self.blocks)


@dataclass(frozen=True)
class Scores:
    """One measurement; shares between 0 and 1.

    Attributes:
        projection: with the trained head; None where the method has none.
        pca: with the PCA head on the descriptor.
        features: with the pooled features themselves.
    """

    projection: float | None
    pca: float
    features: float

    @property
    def best(self) -> float:
        """The better of the two heads."""
        return max(self.projection or 0.0, self.pca)

    def named(self) -> dict[str, float]:
        """Return the numbers as metrics.jsonl calls them."""
        trained = {} if self.projection is None else {"knn_projection": self.projection}
        return {**trained, "knn_pca": self.pca, "knn_features": self.features}


class Evaluation:
    """The measurement of a run: which pictures, which protocol, which split."""

    def __init__(self, recipe: Recipe, train: Pictures, test: Pictures | None = None) -> None:
        if test is not None and test.classes != train.classes:
            raise TrainingError(
                f"expected test pictures of the training classes ({', '.join(train.classes[:5])}, …), "
                f"got {', '.join(test.classes[:5]) or 'none'}; check --test"
            )
        self.recipe, self.train, self.test = recipe, train, test
        self.protocol = KnnProtocol(recipe.knn_k, recipe.knn_temperature)

    @property
    def split(self) -> str:
        """Who votes for whom."""
        if not self.train.labelled:
            return "instance retrieval from one random view"
        return "leave-one-out" if self.test is None else "train → test"

    def describe(self) -> str:
        """Return protocol, split and set in one phrase."""
        protocol = str(self.protocol) if self.train.labelled else "1-NN"
        classes = f", {len(self.train.classes)} classes" if self.train.labelled else ", no labels"
        tested = f" → {len(self.test):,}" if self.test is not None and self.train.labelled else ""
        return f"{protocol}, {self.split}, {len(self.train):,}{tested} pictures{classes}"

    def baseline(self) -> float:
        """Return the score of raw pixels reduced by PCA to D: the line that an encoder must rise above.

        The better of plain and whitened components: whitening alone can be worth ten points.
        """
        train = _small_pixels(self.train.prepared)
        other = None
        if not self.train.labelled:
            other = _small_pixels(self.view_pixels())
        elif self.test is not None:
            other = _small_pixels(self.test.prepared)
        scores = []
        for whiten in (0.0, 1.0):
            pca = fit_pca(train[:: -(-len(train) // _PIXEL_SAMPLES)], self.recipe.dim, whiten)
            scores.append(self.score(pca(train), None if other is None else pca(other)))
        return max(scores)

    def measure(self, network: Network) -> Scores:
        """Return the scores of a network; its mode (training or not) is restored."""
        train = embed(network, self.train.prepared)
        pca = train.fit_pca(self.recipe)
        other = None
        if not self.train.labelled:
            other = embed(network, self.view_pixels())
        elif self.test is not None:
            other = embed(network, self.test.prepared)
        return Scores(
            projection=(
                None
                if train.projection is None
                else self.score(train.projection, other.projection if other else None)
            ),
            pca=self.score(pca(train.descriptor), pca(other.descriptor) if other else None),
            features=self.score(unit(train.features), unit(other.features) if other else None),
        )

    def score(self, train: Vectors, other: Vectors | None) -> float:
        """Return the score of unit embeddings (N, D), with those of the test pictures or views where they count."""
        if not self.train.labelled:
            return _retrieval(other, train) if other is not None else 0.0
        classes = len(self.train.classes)
        if self.test is None or other is None:
            return leave_one_out(self.protocol, train, self.train.labels, classes)
        return accuracy(self.protocol, other, self.test.labels, train, self.train.labels, classes)

    def view_pixels(self) -> Pixels:
        """Return the fixed random views that ask for their own pictures: uint8 (≤ N, H, H, 3)."""
        images = self.train.first(_RETRIEVAL_VIEWS)
        draw = Share.whole(len(images)).draw(self.recipe.seed, images.device)
        views = view(images, self.recipe.image_size, self.recipe.augment, draw)
        return np.asarray((views * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu())


def embed(network: Network, pixels: Pixels) -> Embedded:
    """Embed prepared pictures, uint8 (N, H, W, 3), in evaluation mode."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    parts: list[tuple[Tensor, ...]] = []
    projections = []
    with torch.inference_mode():
        for start in range(0, len(pixels), _BATCH):
            part = _tensor(pixels[start : start + _BATCH]).to(device).permute(0, 3, 1, 2)
            pooled = network.descriptor(part.float() / 255)
            parts.append(tuple(stage.cpu() for stage in pooled))
            if network.projection is not None:
                projections.append(network.project(pooled[-1]).cpu())
    network.train(training)
    stages = [torch.cat(stage).numpy() for stage in zip(*parts, strict=True)]
    if not all(np.isfinite(stage).all() for stage in stages):
        raise CollapseError(
            "expected finite features of the measured pictures, got overflow: the network's activations have run "
            "away; lower learning_rate, or --set clip=1, and start again in a new --out"
        )
    return Embedded(
        features=stages[-1],
        projection=unit(torch.cat(projections).numpy()) if projections else None,
        descriptor=np.concatenate(stages, axis=1),
        blocks=tuple(stage.shape[1] for stage in stages),
    )


def _small_pixels(pixels: Pixels) -> Vectors:
    """Return pictures of at most 32 × 32 pixels as vectors; more detail does not help raw pixels."""
    side = min(_PIXEL_SIDE, pixels.shape[1])
    small = np.empty((len(pixels), 3 * side**2), np.float32)
    for start in range(0, len(pixels), _BATCH):
        part = slice(start, start + _BATCH)
        images = _tensor(pixels[part]).permute(0, 3, 1, 2).float()
        small[part] = F.adaptive_avg_pool2d(images, side).flatten(1).numpy()
    return small


def _tensor(pixels: Pixels) -> Tensor:
    """Return pictures as a tensor: in place, or, from a read-only file, copied."""
    return torch.from_numpy(pixels if pixels.flags.writeable else np.array(pixels))


def _retrieval(queries: Vectors, items: Vectors) -> float:
    """Return the share of queries whose nearest item is their own: row i belongs to row i."""
    return float(np.mean(top_k(queries, items, 1).rows[:, 0] == np.arange(len(queries))))
