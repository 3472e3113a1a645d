"""Recipes of instance discrimination (Wu et al. 2018, arXiv:1805.01978), and its options."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from index.errors import RecipeError
from training.recipes.recipe import Augmentation, Options, within
from training.recipes.scales import CIFAR10, CIFAR10_CPU, CLIP_ART, IMAGENET


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


_DEMO = replace(
    CLIP_ART,
    name="npid-demo",
    about="""What `make pretrain-demo` runs: npid-gallery, cut to seven to ten minutes on two cores.
    python -m training pretrain npid-demo --data examples/gallery --out runs/npid-demo
    Measured kNN-10 τ=0.07, leave-one-out: 0.58; raw pixels 0.55, untrained network 0.52 (docs/results.md).""",
    options=Npid(temperature=0.2, views=2, instance=0.25, contrast=1.0, contrast_temperature=0.2),
)

RECIPES = (
    _DEMO,
    replace(
        _DEMO,
        name="npid-gallery",
        about="""The encoder that ships with the demo: clip art at 64 px, 41 minutes on two busy cores.
        python -m training pretrain npid-gallery --data examples/gallery --out runs/npid-gallery
        Measured kNN-10 τ=0.07, leave-one-out: 0.62; raw pixels 0.55, untrained network 0.52 (docs/results.md).""",
        epochs=220,
        knn_every=20,
    ),
    replace(
        CIFAR10,
        name="npid-cifar10",
        about="""The published CIFAR-10 recipe, exact softmax: 200 epochs, for a GPU.
        python -m training pretrain npid-cifar10 --data cifar10:FOLDER --test cifar10:FOLDER:test --out RUN
        Published kNN-200 τ=0.1: 80.8 (NCE, --set options.loss=nce: 80.4). Not yet run here.
        Source: github.com/zhirongw/lemniscate.pytorch, cifar.py and README. No mirror images, as there.""",
        options=Npid(temperature=0.1),
        schedule="step",
        augment=Augmentation(flip=0.0),
    ),
    replace(
        CIFAR10_CPU,
        name="npid-cifar10-cpu",
        about="""CIFAR-10 in twenty minutes on two busy cores: a check that real photographs are learnt.
        python -m training pretrain npid-cifar10-cpu --data cifar10:FOLDER --test cifar10:FOLDER:test --out RUN
        Measured kNN-200 τ=0.1, train → test: 0.60; raw pixels 0.58, untrained network 0.47 (docs/results.md).""",
        options=Npid(temperature=0.2, views=2, instance=0.25, contrast=1.0),
    ),
    replace(
        IMAGENET,
        name="npid-imagenet",
        about="""The published ImageNet recipe: NCE with 4096 negatives, 200 epochs, for several GPUs.
        torchrun --nproc-per-node 4 -m training pretrain npid-imagenet --data train --test val --out RUN
        Published kNN-200 τ=0.07: ResNet-18 41.0, ResNet-50 46.8 (--set backbone=resnet50). Not yet run here.
        The softmax over all 1.28 million (--set options.loss=softmax) is exact. On a CPU it takes 1.5 times as
        long as NCE and a fortieth of the memory (docs/results.md); not timed on a GPU.
        Source: github.com/zhirongw/lemniscate.pytorch, main.py and README.""",
        options=Npid(loss="nce"),
        backbone="resnet18",
        schedule="step",
        augment=Augmentation(order="gray-jitter"),
    ),
)
