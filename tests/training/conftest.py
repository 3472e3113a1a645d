"""A recipe so small that a test trains it in a second."""

import pytest
import torch

from training.recipes import Augmentation, Npid, Recipe


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums of floats depend on how many threads share them; resumed runs are compared to the bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_recipe():
    return Recipe(
        name="tiny",
        about="",
        image_size=16,
        cache_size=20,
        fit="pad",
        width=0.25,
        stem="half",
        epochs=3,
        batch_size=8,
        knn_k=5,
        augment=Augmentation(crop_area=0.5),
        options=Npid(temperature=0.2, views=2, contrast=1.0),
    )
