"""Rotation prediction against pixels that were turned by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from training import checkpoints
from training.backbone import build
from training.data import load_pictures
from training.draws import Share
from training.evaluation.knn import Evaluation
from training.loop import Training
from training.methods import Batch, create
from training.methods.rotation import RotationPrediction, rotations
from training.recipes import RECIPES, Augmentation, Recipe, Rotation

STILL = Augmentation(crop_area=1.0, crop_ratio=1.0, flip=0.0, jitter=0.0, grayscale=0.0)
RECIPE = Recipe("test", "", Rotation(), image_size=8, cache_size=8, width=0.25, stem="full", augment=STILL)


def pictures(count=6, side=8, seed=1):
    generator = Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def method(recipe=RECIPE, seed=0):
    torch.manual_seed(seed)
    return RotationPrediction(build(recipe), recipe, 40)


def batch(task, count=6, seed=5):
    share = Share.whole(count)
    return Batch(task.views(pictures(count), share.draw(seed)), torch.arange(count), share, seed)


def turned_by_hand(image, turns):
    """Counter-clockwise: what stood at the right end of the top row comes to its left end."""
    for _ in range(turns):
        side = image.shape[-1]
        result = np.zeros_like(image)
        for y in range(side):
            for x in range(side):
                result[:, side - 1 - x, y] = image[:, y, x]
        image = result
    return image


def test_the_four_rotations_of_a_picture_follow_each_other_counter_clockwise():
    images = torch.rand(3, 3, 5, 5, generator=Generator().manual_seed(0))
    result = rotations(images).numpy()
    assert len(result) == 12
    for row, got in enumerate(result):
        picture, turns = divmod(row, 4)
        assert np.array_equal(got, turned_by_hand(images[picture].numpy(), turns))
        assert np.array_equal(got, np.rot90(images[picture].numpy(), turns, axes=(1, 2)))


def test_the_published_way_to_turn_is_ours():
    # Official code: 90 degrees is a transpose, then upside down; 180 both mirrors; 270 upside down, then transpose.
    image = torch.rand(1, 3, 4, 4, generator=Generator().manual_seed(0))
    _, quarter, half, three = rotations(image)
    assert torch.equal(quarter, image[0].transpose(1, 2).flip(1))
    assert torch.equal(half, image[0].flip(1).flip(2))
    assert torch.equal(three, image[0].flip(1).transpose(1, 2))


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 4), side=st.integers(1, 9), seed=st.integers(0, 999))
def test_turning_four_times_is_no_turn_and_no_pixel_is_made_up(count, side, seed):
    images = torch.rand(count, 3, side, side, generator=Generator().manual_seed(seed))
    again = images
    for _ in range(4):
        again = rotations(again)[1::4]  # each by 90 degrees
    assert torch.equal(again, images)
    values = rotations(images).reshape(count, 4, 3, -1).sort(dim=3).values
    assert torch.equal(values, values[:, :1].expand_as(values))


def test_views_are_resized_first_and_turned_after():
    recipe = replace(RECIPE, cache_size=16, augment=Augmentation(crop_area=0.3))
    (views,) = method(recipe).views(pictures(5, side=16), Share.whole(5).draw(3))
    assert views.shape == (20, 3, 8, 8)
    for row, seen in enumerate(views):
        assert torch.equal(seen, views[row - row % 4].rot90(row % 4, dims=(1, 2)))


def test_the_label_of_a_row_is_the_number_of_its_turns():
    # The upper row of each picture is white. A classifier that looks for the white border is always right.
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[:, :, 0] = 255
    task = method()
    (views,) = task.views(images, Share.whole(4).draw(0))
    borders = [views[:, 0, 0], views[:, 0, :, 0], views[:, 0, 7], views[:, 0, :, 7]]  # top, left, bottom, right
    seen = torch.stack([border.mean(dim=1) for border in borders], dim=1).argmax(dim=1)
    assert seen.tolist() == [0, 1, 2, 3] * 4


@torch.no_grad()
def test_the_loss_equals_a_loop_over_pictures_and_rotations():
    task = method().eval()
    given_batch = batch(task)
    torch.nn.init.normal_(task.classifier.weight, std=1.0)
    loss = task.loss(given_batch)
    total, right = 0.0, 0
    for image in pictures():
        for turns in range(4):
            turned = torch.from_numpy(turned_by_hand((image / 255).numpy(), turns))[None]
            weights, bias = task.classifier.weight, task.classifier.bias
            scores = [float(task.network.features(turned)[0] @ weights[k] + bias[k]) for k in range(4)]
            total -= scores[turns] - math.log(sum(math.exp(score) for score in scores))
            right += int(np.argmax(scores) == turns)
    assert loss.value.item() == pytest.approx(total / 24, rel=1e-4)
    assert loss.metrics["accuracy"].item() == pytest.approx(right / 24)


def test_the_loss_starts_at_the_logarithm_of_four():
    assert method().train().loss(batch(method(), 32)).value.item() == pytest.approx(math.log(4), abs=0.05)


def test_the_loss_called_twice_is_the_same_and_leaves_nothing_pending():
    task = method().train()
    given_batch = batch(task)
    first, second = task.loss(given_batch), task.loss(given_batch)
    assert first.value.item() == second.value.item()
    assert not first.pending


def test_the_embeddings_are_those_of_the_upright_views():
    task = method().eval()
    upright = F.normalize(task.network.features(pictures() / 255), dim=1)
    assert torch.allclose(task.loss(batch(task)).embeddings, upright, atol=1e-5)


def test_which_way_up_is_learnt():
    # Grey noise that gets lighter downwards: nothing but its direction can be told.
    task = method().train()
    slope = torch.linspace(0, 160, 8)[:, None].expand(64, 3, 8, 8)
    images = (slope + pictures(64).float() * 0.3).to(torch.uint8)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    share = Share.whole(64)
    for step in range(12):
        loss = task.loss(Batch(task.views(images, share.draw(step)), torch.arange(64), share, step))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert loss.metrics["accuracy"].item() > 0.9


def test_a_run_that_lost_its_last_step_computes_it_again_to_the_bit(tiny_recipe, shapes_folder, tmp_path):
    recipe = replace(tiny_recipe, options=Rotation(), epochs=2)
    evaluation = Evaluation(recipe, load_pictures(shapes_folder, recipe))
    assert Training(recipe, evaluation, tmp_path, save_seconds=0.0).run()
    newest = checkpoints.latest(tmp_path)
    straight = checkpoints.load(newest)
    newest.unlink()
    again = Training(recipe, evaluation, tmp_path, save_seconds=0.0)
    assert again.run()
    assert again.scores.projection is None
    resumed = checkpoints.load(checkpoints.latest(tmp_path))
    assert resumed["state"]["step"] == straight["state"]["step"] == again.plan.steps
    for name, value in straight["method"].items():
        assert torch.equal(resumed["method"][name], value), name


def test_the_recipes_carry_the_published_values():
    cifar, imagenet = RECIPES["rotation-cifar10"], RECIPES["rotation-imagenet"]
    assert (cifar.milestones, cifar.step_factor, cifar.epochs) == ((60, 120, 160), 0.2, 200)
    assert (cifar.learning_rate, cifar.nesterov, cifar.weight_decay) == (0.1, True, 5e-4)
    assert (imagenet.learning_rate, imagenet.warmup, imagenet.milestones) == (0.2, 5, (30, 50))
    assert 4 * imagenet.batch_size == 4 * cifar.batch_size == 512


def test_the_method_is_made_by_its_recipe():
    task = create(replace(RECIPE, options=RECIPES["rotation-demo"].options), 40)
    assert isinstance(task, RotationPrediction)
    assert task.network.projection is None
