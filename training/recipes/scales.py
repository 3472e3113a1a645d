"""What recipes of one scale share, whatever the method: a named recipe says only what is its own.

These are not recipes by themselves: they have no name and no method.
"""

from training.recipes.recipe import Augmentation, Options, Recipe

# Clip art at 64 px on two CPU cores. Its odd shapes are kept whole, and it is told apart by colour as well: nothing
# is cut off, and hues move only a little (docs/log.md).
CLIP_ART = Recipe(
    name="",
    about="",
    options=Options(),
    image_size=64,
    cache_size=80,
    fit="pad",
    width=0.5,
    stem="quarter",
    epochs=55,
    batch_size=128,
    optimizer="adamw",
    learning_rate=1e-3,
    weight_decay=0.05,
    warmup=3,
    precision="bfloat16",
    knn_k=10,
    knn_every=5,
    whiten=1.0,
    augment=Augmentation(crop_area=0.25, rotation=10.0, jitter=0.8, hue=0.1),
)

# CIFAR-10 in half an hour of two CPU cores.
CIFAR10_CPU = Recipe(
    name="",
    about="",
    options=Options(),
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
)

# CIFAR-10 on a GPU: the network and the kNN that the papers print.
CIFAR10 = Recipe(
    name="",
    about="",
    options=Options(),
    image_size=32,
    cache_size=32,
    stem="full",
    batch_size=128,
    weight_decay=5e-4,
    decay_all=True,
    knn_temperature=0.1,
    knn_every=5,
)

# ImageNet on several GPUs. ResNet-50 is what most papers print.
IMAGENET = Recipe(
    name="",
    about="",
    options=Options(),
    backbone="resnet50",
    decay_all=True,
    precision="bfloat16",
    knn_every=10,
)
