"""Recipes of rotation prediction (Gidaris et al. 2018, arXiv:1803.07728); see training/methods/rotation.py."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from training.recipes.recipe import Augmentation, Options
from training.recipes.scales import CIFAR10, CLIP_ART, IMAGENET


@dataclass(frozen=True)
class Rotation(Options):
    """Rotation prediction has nothing to choose: four rotations a picture, one linear classifier."""

    method: ClassVar[str] = "rotation"

    @property
    def projection(self) -> Literal["linear", "mlp", "none"]:
        """The classifier of four turns is no embedding: the encoder's head is a PCA."""
        return "none"


# Geometry only: the papers change no colours.
_PLAIN = Augmentation(jitter=0.0, grayscale=0.0)

RECIPES = (
    replace(
        CLIP_ART,
        name="rotation-demo",
        about="""The demo's network on two cores: which way up is a drawing? Four encodes a picture and epoch.
        python -m training pretrain rotation-demo --data examples/gallery --out runs/rotation-demo
        Rotation accuracy starts at 0.25. For kNN-10 τ=0.07, leave-one-out, compare with the two lines that the run
        prints first: raw pixels 0.55, untrained network 0.52. Not yet run to its end. Network, optimiser and crops
        of npid-demo; the pictures keep their colours.""",
        options=Rotation(),
        epochs=30,
        batch_size=64,
        augment=replace(_PLAIN, crop_area=0.25),
    ),
    replace(
        CIFAR10,
        name="rotation-cifar10",
        about="""The official CIFAR-10 schedule, on a ResNet-18: 200 epochs, for a GPU.
        python -m training pretrain rotation-cifar10 --data cifar10:FOLDER --test cifar10:FOLDER:test --out RUN
        Rotation accuracy on the test set, re-run by a user of the official code: 93.65, for its Network in Network
        of four blocks. This is a ResNet-18 with the CIFAR stem, so no published kNN exists. Not yet run here.
        Source: github.com/gidariss/FeatureLearningRotNet, config/CIFAR10_RotNet_NIN4blocks.py and issue 6.
        128 pictures are 512 rotated ones; the rate was not scaled for the four.""",
        options=Rotation(),
        learning_rate=0.1,
        nesterov=True,
        schedule="step",
        milestones=(60, 120, 160),
        step_factor=0.2,
        augment=replace(_PLAIN, crop_area=1.0, crop_ratio=1.0, shift=4),
    ),
    replace(
        IMAGENET,
        name="rotation-imagenet",
        about="""The ResNet-50 recipe of MMSelfSup: 70 epochs, for several GPUs.
        torchrun --nproc-per-node 8 -m training pretrain rotation-imagenet --data train --test val --out RUN
        Published kNN-200 τ=0.07 of the pooled last stage: 12.4; a linear classifier reaches 54.2 on the fourth of
        five stages and 47.0 on the pooled last one. Not yet run here.
        Source: MMSelfSup, rotation-pred_resnet50_8xb16-steplr-70e_in1k. Its batch is 8 × 16 = 128 pictures, which
        makes 512 rotated ones; BatchNorm takes its statistics over all GPUs, as there.""",
        options=Rotation(),
        sync_bn=True,
        epochs=70,
        batch_size=128,
        learning_rate=0.2,
        schedule="step",
        milestones=(30, 50),
        warmup=5,
        augment=replace(_PLAIN, crop_area=0.08),
    ),
)
