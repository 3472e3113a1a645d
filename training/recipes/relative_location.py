"""Recipes of relative location (Doersch et al. 2015, arXiv:1505.05192); see methods/relative_location.py."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from training.recipes.recipe import Augmentation, Options, within
from training.recipes.scales import CIFAR10, CLIP_ART, IMAGENET


@dataclass(frozen=True)
class RelativeLocation(Options):
    """Options of relative location. Sides are in pixels of the cached picture.

    The recipe's `augment` is applied to the whole picture first, at `cache_size`; then a square of side `crop` is
    cut from a random place, its 3×3 cells have a side of `crop` ÷ 3, rounded down, and from a random place in each
    cell comes one patch. `image_size` is only the side at which the finished encoder sees whole pictures.

    Attributes:
        crop: side of the square that holds the nine cells.
        patch: side of the patches; what a cell is larger by is the jitter, and keeps lines from running on.
        standardise: gives each patch mean 0 and standard deviation 1, so that brightness tells nothing.
        project_colours: removes the green-magenta axis, along which lenses betray the place in the picture.
        hidden: width of the classifier's hidden layer.
        dropout: share of the hidden layer that is dropped.
    """

    method: ClassVar[str] = "relative_location"

    crop: int = 255
    patch: int = 64
    standardise: bool = False
    project_colours: bool = False
    hidden: int = 4096
    dropout: float = 0.5

    def __post_init__(self) -> None:
        within(self, 3, 4096, "crop")
        within(self, 1, 4096, "patch")
        within(self, 1, math.inf, "hidden")
        within(self, 0, 0.99, "dropout")

    @property
    def projection(self) -> Literal["linear", "mlp", "none"]:
        """The classifier of eight places is no embedding: the encoder's head is a PCA."""
        return "none"


# As published: nothing is stretched, mirrored or recoloured but two thirds of the pictures are grey.
_GRAY = Augmentation(crop_area=1.0, crop_ratio=1.0, flip=0.0, jitter=0.0, grayscale=0.66)

RECIPES = (
    replace(
        CLIP_ART,
        name="relative-location-demo",
        about="""The demo's network on two cores: where was this piece of a drawing? Nine small encodes a picture.
        python -m training pretrain relative-location-demo --data examples/gallery --out runs/relative-location-demo
        Accuracy of places starts at 0.125 and cannot come near 1 on drawings: a white patch may lie anywhere. For
        kNN-10 τ=0.07, leave-one-out, compare with the two lines that the run prints first: raw pixels 0.55,
        untrained network 0.52. Not yet run to its end. Network and optimiser of npid-demo.""",
        options=RelativeLocation(crop=84, patch=20, hidden=512),
        cache_size=96,
        epochs=60,
        batch_size=64,
        knn_every=10,
        augment=_GRAY,
    ),
    replace(
        CIFAR10,
        name="relative-location-cifar10",
        about="""Relative location at 32 px: 200 epochs, for a GPU.
        python -m training pretrain relative-location-cifar10 --data cifar10:FOLDER --test cifar10:FOLDER:test \\
          --out RUN
        Nobody has published this method on CIFAR-10, so there is no number to expect. Not yet run here.
        Cells of 10 px and patches of 8 keep roughly the proportions of the ImageNet recipe; optimiser and schedule
        are those of rotation-cifar10.""",
        options=RelativeLocation(crop=30, patch=8, hidden=1024),
        learning_rate=0.1,
        nesterov=True,
        schedule="step",
        milestones=(60, 120, 160),
        step_factor=0.2,
        augment=_GRAY,
    ),
    replace(
        IMAGENET,
        name="relative-location-imagenet",
        about="""The ResNet-50 recipe of MMSelfSup: 70 epochs, for several GPUs.
        torchrun --nproc-per-node 8 -m training pretrain relative-location-imagenet --data train --test val \\
          --out RUN
        Published kNN-200 τ=0.07 of the pooled last stage: 14.2; a linear classifier reaches 51.2 on the fourth of
        five stages and 40.4 on the pooled last one. Not yet run here.
        Source: MMSelfSup, relative-loc_resnet50_8xb64-steplr-70e_in1k, after Kolesnikov et al. 2019
        (arXiv:1901.09005), who also standardise the patches (--set options.standardise=true). Differences: pictures
        are cut to their centre square instead of squashed, the classifier has the backbone's weight decay instead
        of five times as much, and centres share BatchNorm statistics with their neighbours.""",
        options=RelativeLocation(),
        cache_size=292,
        epochs=70,
        batch_size=512,
        learning_rate=0.2,
        schedule="step",
        milestones=(30, 50),
        warmup=5,
        augment=_GRAY,
    ),
)
