"""Recipes of MoCo v2 (He et al. 2020, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297).

The maths is in training/methods/moco_v2.py.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from training.recipes.recipe import Augmentation, Options, within
from training.recipes.scales import CIFAR10, CIFAR10_CPU, CLIP_ART, IMAGENET


@dataclass(frozen=True)
class MocoV2(Options):
    """Options of momentum contrast, version 2.

    Attributes:
        temperature: τ; 0.2 in version 2 and 0.07 in version 1.
        queue: K, how many keys of earlier batches a query is told from. With as many as there are pictures, a
            query would meet its own picture among the negatives.
        old_weight: weight of the OLD key network when it follows the trained one; the trained one has the rest.
        head: "mlp" is version 2's, with one hidden layer as wide as the features; "linear" is version 1's.
        symmetric: whether each of the two views is query and key in turn. The two losses are added up, as in
            the official code: gradients are twice as large, a step costs twice as much.
        shuffle: whether keys are computed in another order than queries, so that BatchNorm's statistics do not
            give the pairs away. It does something with several processes or bn_splits.
    """

    method: ClassVar[str] = "moco_v2"

    temperature: float = 0.2
    queue: int = 65_536
    old_weight: float = 0.999
    head: Literal["mlp", "linear"] = "mlp"
    symmetric: bool = False
    shuffle: bool = True

    def __post_init__(self) -> None:
        within(self, 1e-3, 100, "temperature")
        within(self, 1, math.inf, "queue")
        within(self, 0, 1, "old_weight")

    @property
    def projection(self) -> Literal["linear", "mlp", "none"]:
        """Which trained head the network carries."""
        return self.head


RECIPES = (
    replace(
        CLIP_ART,
        name="moco-v2-demo",
        about="""Clip art at 64 px on two CPU cores: npid-demo's pictures, network and optimiser.
        python -m training pretrain moco-v2-demo --data examples/gallery --out runs/moco-v2-demo
        kNN-10 τ=0.07, leave-one-out; not yet measured at full length.""",
        options=MocoV2(queue=1024, old_weight=0.99, symmetric=True),
        bn_splits=4,
    ),
    replace(
        CIFAR10,
        name="moco-v2-cifar10",
        about="""The official CIFAR-10 demo: ResNet-18, 200 epochs, for one GPU.
        python -m training pretrain moco-v2-cifar10 --data cifar10:FOLDER --test cifar10:FOLDER:test --out RUN
        Published kNN-200 τ=0.1: 82.6; with --set options.symmetric=true 85.3. 800 epochs: 88.7 and 89.7. Not yet
        run here. The loss rises to 7.3 in epoch 3 before it falls to 2.3.
        Source: github.com/facebookresearch/moco, branch colab-notebook. There the rate changes once an epoch.""",
        options=MocoV2(temperature=0.1, queue=4096, old_weight=0.99, head="linear"),
        bn_splits=8,
        batch_size=512,
        learning_rate=0.06,
        augment=Augmentation(crop_area=0.08, jitter=0.8, hue=0.1),
    ),
    replace(
        CIFAR10_CPU,
        name="moco-v2-cifar10-cpu",
        about="""CIFAR-10 on two CPU cores: npid-cifar10-cpu's network and optimiser.
        python -m training pretrain moco-v2-cifar10-cpu --data cifar10:FOLDER --test cifar10:FOLDER:test --out RUN
        Measured kNN-200 τ=0.1, train → test: 0.585 after 851 CPU seconds; raw pixels 0.58 (docs/results.md).""",
        options=MocoV2(queue=4096, old_weight=0.99, symmetric=True),
        bn_splits=4,
    ),
    replace(
        IMAGENET,
        name="moco-v2-imagenet",
        about="""The official ImageNet recipe: ResNet-50, 200 epochs, for eight GPUs with 32 pictures each.
        torchrun --nproc-per-node 8 -m training pretrain moco-v2-imagenet --data train --test val --out RUN
        One GPU: --set bn_splits=8. Published linear accuracy 67.5 (800 epochs: 71.1); the authors print no kNN.
        Not yet run here. Published cost: 53 hours on eight V100. The loss rises to about 10 before it falls to 6.6.
        Source: github.com/facebookresearch/moco, main_moco.py and README. There the rate changes once an epoch.""",
        options=MocoV2(),
        augment=Augmentation(jitter=0.8, hue=0.1, blur=0.5),
    ),
)
