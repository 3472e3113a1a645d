"""What a run does, as data: frozen dataclasses without torch, so that listing recipes costs nothing.

A recipe holds what every method needs; its `options` hold what one method needs, and say which method that is.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from index.errors import RecipeError


@dataclass(frozen=True)
class Augmentation:
    """How a view differs from its picture, in the order applied. Probabilities are per view.

    Attributes:
        crop_area: smallest share of the picture's area that a random resized crop keeps (largest is 1).
        crop_ratio: largest width ÷ height of the cut region (smallest is its inverse).
        shift: instead of a resized crop, a cut of full size moved by up to this many pixels; 0 is black outside.
        rotation: largest angle in degrees, either way; the corners repeat the border.
        flip: probability of the mirror image.
        order: whether the colour jitter or the grayscale comes first (MoCo and NPID's CIFAR code, or NPID's
            ImageNet code).
        jitter: probability of the colour jitter.
        brightness, contrast, saturation: factor uniform in [1 - x, 1 + x].
        hue: shift uniform in [-x, x], as a share of the colour circle.
        grayscale: probability.
        blur: probability of a Gaussian blur.
        blur_sigma: largest standard deviation in pixels (smallest is 0.1).
    """

    crop_area: float = 0.2
    crop_ratio: float = 4 / 3
    shift: int = 0
    rotation: float = 0.0
    flip: float = 0.5
    order: Literal["jitter-gray", "gray-jitter"] = "jitter-gray"
    jitter: float = 1.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.4
    grayscale: float = 0.2
    blur: float = 0.0
    blur_sigma: float = 2.0

    def __post_init__(self) -> None:
        within(self, 0, 1, "flip", "jitter", "brightness", "contrast", "saturation", "grayscale", "blur")
        within(self, 0.01, 1, "crop_area")
        within(self, 1, 10, "crop_ratio")
        within(self, 0, 0.5, "hue")
        within(self, 0, 180, "rotation")
        within(self, 0.1, 100, "blur_sigma")
        within(self, 0, 1024, "shift")


@dataclass(frozen=True)
class Options:
    """What one method needs; each method derives its own. `method` is its key in `training.methods.METHODS`."""

    method: ClassVar[str]

    @property
    def projection(self) -> Literal["linear", "mlp", "none"]:
        """Which trained head the network carries; without one, the encoder's head is a PCA of the features."""
        return "linear"


@dataclass(frozen=True)
class Recipe:
    """One way to pretrain an encoder. Sides are in pixels, times in epochs.

    Attributes:
        name: of the recipe; it goes into the encoder.
        about: what for and how long, then command, expected number and its source.
        options: of the method; they name it.
        image_size: side that the encoder sees.
        cache_size: side at which pictures wait for their random crops.
        fit: "crop" for photographs, "pad" to keep odd shapes whole on white (see index.images.Preprocess).
        backbone, width, stem: see training.backbone.
        bn_splits: BatchNorm takes its statistics over each of this many parts of a process's batch, as that many
            GPUs would.
        sync_bn: BatchNorm takes them over the batch of all processes; GPUs only.
        dim: D of the embedding.
        batch_size: pictures a step, over all processes and micro-batches.
        accumulate: micro-batches a step, for a batch that does not fit into memory.
        optimizer: "sgd" or "adamw".
        learning_rate: peak, at `batch_size`; it is not scaled behind your back.
        weight_decay: on weights; biases and BatchNorm have none, unless `decay_all`.
        decay_all: as the official code of NPID and MoCo.
        momentum, nesterov: SGD's.
        schedule: "cosine" to zero, or "step": × `step_factor` at each of `milestones`.
        milestones: epochs.
        warmup: epochs of linear rise.
        clip: largest gradient norm; 0 turns clipping off.
        precision: of the backbone while training: "float32", or "bfloat16" or "float16" for its convolutions.
        compile: whether torch.compile makes the backbone's kernels; a minute at the start, faster after.
        knn_k, knn_temperature: the protocol that is printed during training and recorded in the encoder.
        knn_every: epochs between measurements.
        whiten: 0 leaves the PCA head as it is, 1 gives its components equal variance, 0.5 lies between.
        seed: of weights, memory, order and augmentation.
    """

    name: str
    about: str
    options: Options
    image_size: int = 224
    cache_size: int = 256
    fit: Literal["crop", "pad"] = "crop"
    backbone: str = "resnet18"
    width: float = 1.0
    stem: str = "imagenet"
    bn_splits: int = 1
    sync_bn: bool = False
    dim: int = 128
    epochs: int = 200
    batch_size: int = 256
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.03
    weight_decay: float = 1e-4
    decay_all: bool = False
    momentum: float = 0.9
    nesterov: bool = False
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[int, ...] = (120, 160)
    step_factor: float = 0.1
    warmup: float = 0.0
    clip: float = 0.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    knn_k: int = 200
    knn_temperature: float = 0.07
    knn_every: int = 1
    whiten: float = 0.0
    seed: int = 0
    augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        within(self, 1, math.inf, "dim", "epochs", "batch_size", "accumulate", "bn_splits", "knn_k", "knn_every")
        within(self, 8, 4096, "image_size", "cache_size")
        within(self, 1e-9, math.inf, "width", "learning_rate", "knn_temperature")
        within(self, 0, math.inf, "weight_decay", "warmup", "clip", "seed")
        within(self, 0, 1, "momentum", "whiten", "step_factor")

    @property
    def method(self) -> str:
        """The method's key."""
        return self.options.method

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values, nested parts as objects."""
        values = {"method": self.method, **dataclasses.asdict(self)}
        return dict(json.loads(json.dumps(values)))


def within(part: object, low: float, high: float, *names: str) -> None:
    """Raise RecipeError for an attribute of `part` outside [low, high], NaN included."""
    for name in names:
        value = getattr(part, name)
        if not low <= value <= high:
            bounds = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
            raise RecipeError(f"expected {name} {bounds}, got {value}")
