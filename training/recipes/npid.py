"""Recipes of instance discrimination (Wu et al. 2018, arXiv:1805.01978), and its options."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from index.errors import RecipeError
from training.recipes.recipe import Augmentation, Options, Recipe, within


@dataclass(frozen=True)
class Npid(Options):
    """Options of non-parametric instance discrimination.

    Attributes:
        temperature: τ.
        loss: "softmax" is exact over all N pictures; "nce" contrasts each picture with `negatives` noise samples
            of its own; "infonce" takes a softmax over the picture and `negatives` samples that the batch shares.
        negatives: m, noise samples ("nce" and "infonce").
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

    method: ClassVar[str] = "npid"

    temperature: float = 0.07
    loss: Literal["softmax", "nce", "infonce"] = "softmax"
    negatives: int = 4096
    partition: Literal["once", "ema"] = "once"
    old_weight: float = 0.5
    proximal: float = 0.0
    views: int = 1
    instance: float = 1.0
    contrast: float = 0.0
    contrast_temperature: float = 0.2

    def __post_init__(self) -> None:
        within(self, 1e-3, 100, "temperature", "contrast_temperature")
        within(self, 0, 1, "old_weight")
        within(self, 0, math.inf, "proximal", "instance", "contrast")
        within(self, 1, math.inf, "negatives", "views")
        if self.contrast > 0 and self.views < 2:
            raise RecipeError(
                f"expected options.views of at least 2 for options.contrast, got {self.views}; set options.views=2"
            )


# Clip art has odd shapes and is told apart by colour as well: nothing is cut off, and hues move only a little.
_GALLERY = Recipe(
    name="npid-gallery",
    about="""The encoder that ships with the demo: clip art at 64 px, 41 minutes on two busy cores.
    python -m training pretrain npid-gallery --data examples/gallery --out runs/npid-gallery
    Measured kNN-10 τ=0.07, leave-one-out: 0.62; raw pixels 0.55, untrained network 0.52 (docs/results.md).""",
    options=Npid(temperature=0.2, views=2, instance=0.25, contrast=1.0, contrast_temperature=0.2),
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
)

RECIPES = (
    replace(
        _GALLERY,
        name="npid-demo",
        about="""What `make pretrain-demo` runs: npid-gallery, cut to seven to ten minutes on two cores.
        python -m training pretrain npid-demo --data examples/gallery --out runs/npid-demo
        Measured kNN-10 τ=0.07, leave-one-out: 0.58; raw pixels 0.55, untrained network 0.52 (docs/results.md).""",
        epochs=55,
        knn_every=5,
    ),
    _GALLERY,
    Recipe(
        name="npid-cifar10",
        about="""The published CIFAR-10 recipe, exact softmax: 200 epochs, for a GPU.
        python -m training pretrain npid-cifar10 --data cifar10:FOLDER --test cifar10:FOLDER:test --out RUN
        Published kNN-200 τ=0.1: 80.8 (NCE, --set options.loss=nce: 80.4). Not yet run here.
        Source: github.com/zhirongw/lemniscate.pytorch, cifar.py and README. No mirror images, as there.""",
        options=Npid(temperature=0.1),
        image_size=32,
        cache_size=32,
        stem="full",
        batch_size=128,
        weight_decay=5e-4,
        decay_all=True,
        schedule="step",
        knn_temperature=0.1,
        knn_every=5,
        augment=Augmentation(flip=0.0),
    ),
    Recipe(
        name="npid-cifar10-cpu",
        about="""CIFAR-10 in twenty minutes on two busy cores: a check that real photographs are learnt.
        python -m training pretrain npid-cifar10-cpu --data cifar10:FOLDER --test cifar10:FOLDER:test --out RUN
        Measured kNN-200 τ=0.1, train → test: 0.60; raw pixels 0.58, untrained network 0.47 (docs/results.md).""",
        options=Npid(temperature=0.2, views=2, instance=0.25, contrast=1.0),
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
    ),
    Recipe(
        name="npid-imagenet",
        about="""The published ImageNet recipe: NCE with 4096 negatives, 200 epochs, for several GPUs.
        torchrun --nproc-per-node 4 -m training pretrain npid-imagenet --data train --test val --out RUN
        Published kNN-200 τ=0.07: ResNet-18 41.0, ResNet-50 46.8 (--set backbone=resnet50). Not yet run here.
        The softmax over all 1.28 million (--set options.loss=softmax) is exact. On a CPU it takes 1.5 times as
        long as NCE and a fortieth of the memory (docs/results.md); not timed on a GPU.
        Source: github.com/zhirongw/lemniscate.pytorch, main.py and README.""",
        options=Npid(loss="nce"),
        decay_all=True,
        schedule="step",
        precision="bfloat16",
        knn_every=10,
        augment=Augmentation(order="gray-jitter"),
    ),
)
