"""What a run does, as data: a frozen dataclass and a table of named recipes.

The difference of two recipes is the list of their scientific differences. No YAML and no inheritance of
files. `training.overrides` changes single values from the command line.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from index.errors import RecipeError


@dataclass(frozen=True)
class Augmentation:
    """How a view differs from its picture, in the order applied. Probabilities are per view.

    Attributes:
        crop_area: smallest share of the picture's area that a random resized crop keeps (largest is 1).
        crop_ratio: largest width ÷ height of the cut region (smallest is its inverse).
        rotation: largest angle in degrees, either way; the corners repeat the border.
        flip: probability of the mirror image.
        jitter: probability of the colour jitter.
        brightness, contrast, saturation: factor uniform in [1 - x, 1 + x].
        hue: shift uniform in [-x, x], as a share of the colour circle.
        grayscale: probability.
        blur: probability of a Gaussian blur.
        blur_sigma: largest standard deviation in pixels (smallest is 0.1).
    """

    crop_area: float = 0.2
    crop_ratio: float = 4 / 3
    rotation: float = 0.0
    flip: float = 0.5
    jitter: float = 1.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.4
    grayscale: float = 0.2
    blur: float = 0.0
    blur_sigma: float = 2.0

    def __post_init__(self) -> None:
        _within(self, 0, 1, "flip", "jitter", "brightness", "contrast", "saturation", "grayscale", "blur")
        _within(self, 0.01, 1, "crop_area")
        _within(self, 1, 10, "crop_ratio")
        _within(self, 0, 0.5, "hue")
        _within(self, 0, 180, "rotation")
        _within(self, 0.1, 100, "blur_sigma")


@dataclass(frozen=True)
class Npid:
    """Non-parametric instance discrimination (Wu et al. 2018, arXiv:1805.01978).

    Attributes:
        temperature: τ.
        loss: "softmax" is exact over all N pictures; "nce" contrasts with `negatives` noise samples.
        negatives: m, noise samples a picture (NCE only).
        partition: NCE's constant Z: "once" from the first batch as published, or "ema" with weight 0.99.
        old_weight: weight of the OLD vector when an instance's memory is renewed; the new one has the rest.
        proximal: λ, the pull towards the vector of the previous visit; 0 as in the released code.
        views: views of each picture a step. The paper has 1; all are told from all N pictures, and their
            mean renews the memory.
        instance: weight of the paper's term.
        contrast: weight of a second term that tells each picture's views from the batch (needs 2 views);
            0 as in the paper.
        contrast_temperature: τ of that term.
    """

    temperature: float = 0.07
    loss: Literal["softmax", "nce"] = "softmax"
    negatives: int = 4096
    partition: Literal["once", "ema"] = "once"
    old_weight: float = 0.5
    proximal: float = 0.0
    views: int = 1
    instance: float = 1.0
    contrast: float = 0.0
    contrast_temperature: float = 0.2

    def __post_init__(self) -> None:
        _within(self, 1e-3, 100, "temperature", "contrast_temperature")
        _within(self, 0, 1, "old_weight")
        _within(self, 0, math.inf, "proximal", "instance", "contrast")
        _within(self, 1, math.inf, "negatives", "views")


@dataclass(frozen=True)
class Recipe:
    """One way to pretrain an encoder. Sides are in pixels, times in epochs.

    Attributes:
        name: of the recipe; it goes into the encoder.
        about: what for and how long, then command, expected number and its source.
        method: a key of `training.methods.METHODS`.
        image_size: side that the encoder sees.
        cache_size: side at which pictures wait for their random crops.
        fit: "crop" for photographs, "pad" to keep odd shapes whole on white (see index.images.Preprocess).
        backbone, width, stem: see training.backbone.
        dim: D of the embedding.
        optimizer: "sgd" (Nesterov) or "adamw".
        learning_rate: peak, at `batch_size`; it is not scaled behind your back.
        weight_decay: on weights; biases and BatchNorm have none.
        momentum: SGD's.
        schedule: "cosine" to zero, or "step": × 0.1 at each of `milestones`.
        milestones: epochs.
        warmup: epochs of linear rise.
        clip: largest gradient norm; 0 turns clipping off.
        precision: "float32", or "bfloat16" for the convolutions.
        knn_k, knn_temperature: the protocol that is printed during training and recorded in the encoder.
        knn_every: epochs between measurements.
        whiten: 0 leaves the PCA head as it is, 1 gives its components equal variance, 0.5 lies between.
        seed: of weights, memory, order and augmentation.
    """

    name: str
    about: str
    method: str = "npid"
    image_size: int = 224
    cache_size: int = 256
    fit: Literal["crop", "pad"] = "crop"
    backbone: str = "resnet18"
    width: float = 1.0
    stem: str = "imagenet"
    dim: int = 128
    epochs: int = 200
    batch_size: int = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.03
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[int, ...] = (120, 160)
    warmup: float = 0.0
    clip: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    knn_k: int = 200
    knn_temperature: float = 0.07
    knn_every: int = 1
    whiten: float = 0.0
    seed: int = 0
    augment: Augmentation = field(default_factory=Augmentation)
    npid: Npid = field(default_factory=Npid)

    def __post_init__(self) -> None:
        _within(self, 1, math.inf, "dim", "epochs", "batch_size", "knn_k", "knn_every")
        _within(self, 8, 4096, "image_size", "cache_size")
        _within(self, 1e-9, math.inf, "width", "learning_rate", "knn_temperature")
        _within(self, 0, math.inf, "weight_decay", "warmup", "clip", "seed")
        _within(self, 0, 1, "momentum", "whiten")

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values, nested parts as objects."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self))))


def _within(part: object, low: float, high: float, *names: str) -> None:
    """Raise RecipeError for a value outside [low, high], NaN included."""
    for name in names:
        value = getattr(part, name)
        if not low <= value <= high:
            bounds = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
            raise RecipeError(f"expected {name} {bounds}, got {value}")


def from_json(values: dict[str, Any]) -> Recipe:
    """Return the recipe that `Recipe.to_json` wrote."""
    parts = {"augment": Augmentation(**values["augment"]), "npid": Npid(**values["npid"])}
    return Recipe(**{**values, **parts, "milestones": tuple(values["milestones"])})


def _table(*recipes: Recipe) -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in recipes}


# Clip art has odd shapes and is told apart by colour as well: nothing is cut off, and hues move only a little.
_GALLERY = Recipe(
    name="npid-gallery",
    about="""The encoder that ships with the demo: clip art at 64 px, 41 minutes on two busy cores.
    python -m training pretrain npid-gallery --data examples/gallery --out runs/npid-gallery
    Measured kNN-10 τ=0.07, leave-one-out: 0.62; raw pixels 0.50, untrained network 0.52 (docs/results.md).""",
    image_size=64,
    cache_size=80,
    fit="pad",
    width=0.5,
    stem="quarter",
    epochs=220,
    batch_size=128,
    optimizer="adamw",
    learning_rate=1e-3,
    weight_decay=0.05,
    warmup=3,
    precision="bfloat16",
    knn_k=10,
    knn_every=20,
    whiten=1.0,
    augment=Augmentation(crop_area=0.25, rotation=10.0, jitter=0.8, hue=0.1),
    npid=Npid(temperature=0.2, views=2, instance=0.25, contrast=1.0, contrast_temperature=0.2),
)

RECIPES = _table(
    replace(
        _GALLERY,
        name="npid-demo",
        about="""What `make pretrain-demo` runs: npid-gallery, cut to seven to ten minutes on two cores.
        python -m training pretrain npid-demo --data examples/gallery --out runs/npid-demo
        Measured kNN-10 τ=0.07, leave-one-out: 0.58; raw pixels 0.50, untrained network 0.52 (docs/results.md).""",
        epochs=55,
        knn_every=5,
    ),
    _GALLERY,
    Recipe(
        name="npid-cifar10",
        about="""The published CIFAR-10 recipe, exact softmax: 200 epochs, for a GPU.
        python -m training pretrain npid-cifar10 --data cifar10-train.parquet --test cifar10-test.parquet --out RUN
        Published kNN-200 τ=0.1: 80.8 (NCE with m=4096: 80.4), on the original files. Not yet run here.
        Source: github.com/zhirongw/lemniscate.pytorch, cifar.py. No mirror images, as there.""",
        image_size=32,
        cache_size=32,
        stem="full",
        batch_size=128,
        weight_decay=5e-4,
        schedule="step",
        knn_temperature=0.1,
        augment=Augmentation(flip=0.0),
        npid=Npid(temperature=0.1),
    ),
    Recipe(
        name="npid-cifar10-cpu",
        about="""CIFAR-10 in twenty minutes on two busy cores: a check that real photographs are learnt.
        python -m training pretrain npid-cifar10-cpu --data cifar10-train.parquet --test cifar10-test.parquet \\
          --out RUN
        Measured kNN-200 τ=0.1, train → test: 0.60; raw pixels 0.42, untrained network 0.47 (docs/results.md).""",
        image_size=32,
        cache_size=32,
        width=0.25,
        stem="half",
        epochs=8,
        batch_size=256,
        optimizer="adamw",
        learning_rate=2e-3,
        weight_decay=0.05,
        warmup=0.5,
        precision="bfloat16",
        knn_temperature=0.1,
        knn_every=2,
        whiten=1.0,
        augment=Augmentation(jitter=0.8, hue=0.1),
        npid=Npid(temperature=0.2, views=2, instance=0.25, contrast=1.0),
    ),
    Recipe(
        name="npid-imagenet",
        about="""The published ImageNet recipe: NCE with 4096 negatives, 200 epochs, for GPUs.
        python -m training pretrain npid-imagenet --data train --test val --out RUN
        Published kNN-200 τ=0.07: ResNet-18 41.0, ResNet-50 46.8 (--set backbone=resnet50). Not yet run here, and
        pictures are kept in memory for now: a subset of ImageNet fits, the whole does not.
        Source: github.com/zhirongw/lemniscate.pytorch, main.py and README.""",
        schedule="step",
        npid=Npid(loss="nce"),
    ),
)
