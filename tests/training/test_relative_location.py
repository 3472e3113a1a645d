"""Relative location against slices, loops and pictures whose pixels say where they are."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from index.errors import RecipeError
from training import checkpoints
from training.augment import luma
from training.backbone import MEAN, STD, build
from training.data import load_pictures
from training.draws import Share
from training.evaluation.knn import Evaluation
from training.loop import Training
from training.methods import Batch, create
from training.methods import relative_location as location
from training.methods.relative_location import RelativeLocationPrediction
from training.recipes import RECIPES, Augmentation, Recipe, RelativeLocation

STILL = Augmentation(crop_area=1.0, crop_ratio=1.0, flip=0.0, jitter=0.0, grayscale=0.0)
RECIPE = Recipe(
    "test",
    "",
    RelativeLocation(crop=30, patch=8, hidden=32),
    image_size=32,
    cache_size=32,
    width=0.25,
    stem="full",
    augment=STILL,
)
NETWORK = build(RECIPE)  # for tests that look at views only


def pictures(count=5, side=32, seed=1):
    generator = Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def coordinates(count, side=32):
    """Pictures whose red is the row and whose green is the column of a pixel."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    return image.expand(count, -1, -1, -1)


def method(recipe=RECIPE, **options):
    torch.manual_seed(0)
    recipe = replace(recipe, options=replace(recipe.options, **options))
    return RelativeLocationPrediction(build(recipe), recipe, 40)


def batch(task, count=5, seed=5):
    share = Share.whole(count)
    return Batch(task.views(pictures(count), share.draw(seed)), torch.arange(count), share, seed)


def corners_of(task, count, seed=0):
    """Read the upper left pixel of each patch off pictures that encode it: int64 (B, 9, 2)."""
    (views,) = task.views(coordinates(count, task.recipe.cache_size), Share.whole(count).draw(seed))
    return (views[:, :2, 0, 0] * 255).round().long().unflatten(0, (-1, 9))


def test_patches_equal_slices():
    images = pictures(3).float()
    corners = torch.randint(0, 25, (3, 9, 2), generator=Generator().manual_seed(2))
    cut = location.patches(images, corners, 8)
    for b in range(3):
        for k in range(9):
            y, x = corners[b, k].tolist()
            assert torch.equal(cut[b, k], images[b, :, y : y + 8, x : x + 8])


def test_views_are_slices_of_the_picture_and_never_cross_their_cells():
    task, images = method(), pictures(40)
    (views,) = task.views(images, Share.whole(40).draw(7))
    corners = corners_of(task, 40, seed=7)  # the same seed draws the same places
    for b in range(40):
        for k in range(9):
            y, x = corners[b, k].tolist()
            assert torch.allclose(views[9 * b + k], images[b, :, y : y + 8, x : x + 8] / 255, atol=1e-4)
            assert abs(y - corners[b, 0, 0] - k // 3 * 10) <= 2  # both lie up to 2 px into their cells
            assert abs(x - corners[b, 0, 1] - k % 3 * 10) <= 2
    rows, columns = corners[..., 0], corners[..., 1]
    assert corners.min() >= 0
    assert corners.max() + 8 <= 32
    for k in range(9):
        for other in range(k):
            apart = ((rows[:, k] - rows[:, other]).abs() >= 8) | ((columns[:, k] - columns[:, other]).abs() >= 8)
            assert apart.all()


@settings(deadline=None, max_examples=25)
@given(patch=st.integers(1, 11), spare=st.integers(0, 5), slack=st.integers(0, 6), seed=st.integers(0, 999))
def test_each_patch_lies_in_its_own_cell_of_one_square(patch, spare, slack, seed):
    crop = 3 * (patch + spare) + seed % 3  # a side that three does not divide leaves its rest unused
    recipe = replace(RECIPE, cache_size=max(8, crop + slack), options=RelativeLocation(crop, patch, hidden=8))
    corners, cell = corners_of(RelativeLocationPrediction(NETWORK, recipe, 40), 6, seed), crop // 3
    places = torch.tensor([[k // 3 * cell, k % 3 * cell] for k in range(9)])
    offsets = corners - places  # the square's corner plus the patch's own jitter
    jitter = offsets.amax(dim=1) - offsets.amin(dim=1)
    assert jitter.max() <= cell - patch
    assert offsets.min() >= 0
    assert (offsets.amax(dim=1) <= recipe.cache_size - crop + cell - patch).all()


def test_jitter_and_square_are_uniform_and_each_patch_has_its_own():
    recipe = replace(RECIPE, cache_size=33)  # square 30: corner 0…3; cell 10, patch 8: jitter 0…2
    corners = corners_of(method(recipe), 6000)
    places = torch.tensor([[k // 3 * 10, k % 3 * 10] for k in range(9)])
    offsets = corners - places
    # Two patches of the same square differ by the difference of two uniform jitters: the triangle 1 2 3 2 1.
    difference = (offsets[:, 0] - offsets[:, 8]).flatten()
    counts = torch.bincount(difference + 2, minlength=5) / len(difference)
    assert torch.allclose(counts, torch.tensor([1, 2, 3, 2, 1]) / 9, atol=0.015)
    # One offset is the sum of a uniform corner and a uniform jitter: 1 2 3 3 2 1.
    for k in (0, 4):
        sums = torch.bincount(offsets[:, k].flatten(), minlength=6) / 12_000
        assert torch.allclose(sums, torch.tensor([1, 2, 3, 3, 2, 1]) / 12, atol=0.015)


def test_pairs_join_neighbour_and_centre_in_this_order_and_skip_the_centre():
    features = torch.arange(18.0).reshape(2, 9, 1)  # a patch's feature is its place
    expected = [[k, 4] for k in (0, 1, 2, 3, 5, 6, 7, 8)] + [[9 + k, 13] for k in (0, 1, 2, 3, 5, 6, 7, 8)]
    assert location.pairs(features).tolist() == expected


def test_labels_say_where_the_neighbour_lies():
    task = method()
    corners = corners_of(task, 3).float()
    direction = (corners - corners[:, 4:5]).div(10).round()  # rows and columns of cells away from the centre
    joined = location.pairs(direction)[:, :2]
    ring = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    assert [tuple(pair) for pair in joined.int().tolist()] == ring * 3


@torch.no_grad()
def test_the_loss_equals_a_loop_that_encodes_both_patches_of_every_pair():
    task = method().eval()
    torch.nn.init.normal_(task.head[-1].weight, std=1.0)
    given_batch = batch(task)
    loss = task.loss(given_batch)
    each = given_batch.views[0].unflatten(0, (5, 9))
    total, right = 0.0, 0
    for image in each:
        for label, k in enumerate((0, 1, 2, 3, 5, 6, 7, 8)):
            neighbour, centre = task.network.features(image[k : k + 1]), task.network.features(image[4:5])
            (logits,) = task.head(torch.cat([neighbour, centre], dim=1))
            total -= float(logits[label] - logits.exp().sum().log())
            right += int(logits.argmax() == label)
    assert loss.value.item() == pytest.approx(total / 40, rel=1e-4)
    assert loss.metrics["accuracy"].item() == pytest.approx(right / 40)


def test_each_patch_is_encoded_once():
    task = method().train()
    seen = []
    task.network.backbone.conv1.register_forward_pre_hook(lambda _module, given: seen.append(len(given[0])))
    task.loss(batch(task))
    assert sum(seen) == 5 * 9


def test_the_loss_starts_at_the_logarithm_of_eight():
    task = method().train()
    assert task.loss(batch(task, 32)).value.item() == pytest.approx(math.log(8), abs=0.05)


def test_the_loss_called_twice_under_the_same_seed_is_the_same_and_leaves_nothing_pending():
    task = method().train()
    given_batch = batch(task)
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(task.loss(given_batch))
    assert losses[0].value.item() == losses[1].value.item()
    assert not losses[0].pending


def test_the_embeddings_are_those_of_the_centres():
    task = method().eval()
    given_batch = batch(task)
    centres = F.normalize(task.network.features(given_batch.views[0][4::9]), dim=1)
    assert torch.allclose(task.loss(given_batch).embeddings, centres, atol=1e-5)


def test_standardised_patches_reach_the_network_with_mean_zero_and_deviation_one():
    task = method(standardise=True)
    (views,) = task.views(pictures(), Share.whole(5).draw(0))
    scale, shift = (torch.tensor(each)[:, None, None] for each in (STD, MEAN))
    for patch in (views - shift) / scale:
        assert float(patch.mean()) == pytest.approx(0, abs=1e-4)
        assert float(patch.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_a_patch_of_one_colour_survives_standardising():
    flat = torch.full((1, 1, 3, 8, 8), 0.7)
    assert torch.allclose(location.standardise(flat)[0, 0, :, 0, 0], torch.tensor(MEAN), atol=1e-5)


def test_projected_colours_have_nothing_along_the_green_magenta_axis_and_keep_the_rest():
    images = torch.rand(4, 3, 6, 6, generator=Generator().manual_seed(0))
    projected = location.project_colours(images)
    for before, after in zip(images.permute(0, 2, 3, 1).reshape(-1, 3), _colours(projected), strict=True):
        assert float(-after[0] + 2 * after[1] - after[2]) == pytest.approx(0, abs=1e-6)
        removed = before - after
        assert torch.allclose(removed, removed[1] / 2 * torch.tensor([-1.0, 2.0, -1.0]), atol=1e-6)
    assert torch.allclose(location.project_colours(projected), projected, atol=1e-6)
    gray = luma(images).expand_as(images)
    assert torch.allclose(location.project_colours(gray), gray, atol=1e-6)


def _colours(images):
    return images.permute(0, 2, 3, 1).reshape(-1, 3)


def test_the_option_projects_the_patches():
    (views,) = method(project_colours=True).views(pictures(), Share.whole(5).draw(0))
    assert (-views[:, 0] + 2 * views[:, 1] - views[:, 2]).abs().max() < 1e-5


def test_two_thirds_of_the_pictures_are_gray_and_all_nine_patches_with_them():
    recipe = replace(RECIPE, augment=RECIPES["relative-location-imagenet"].augment)
    (views,) = method(recipe).views(pictures(1).expand(2000, -1, -1, -1), Share.whole(2000).draw(0))
    gray = ((views[:, 0] - views[:, 1]).abs().flatten(1).amax(dim=1) < 1e-6).unflatten(0, (-1, 9))
    assert torch.equal(gray.any(dim=1), gray.all(dim=1))
    assert gray.all(dim=1).float().mean().item() == pytest.approx(0.66, abs=0.03)


def test_a_run_that_lost_its_last_step_computes_it_again_to_the_bit(tiny_recipe, shapes_folder, tmp_path):
    recipe = replace(tiny_recipe, options=RelativeLocation(crop=18, patch=5, hidden=16), epochs=2)
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


def test_a_square_larger_than_the_cached_picture_is_refused():
    with pytest.raises(RecipeError, match=r"cache_size of at least options\.crop, 30 px, got 28.*options\.crop=28"):
        method(replace(RECIPE, cache_size=28))


def test_a_patch_larger_than_its_cell_is_refused():
    with pytest.raises(RecipeError, match=r"cells of at least options\.patch, 11 px, got 10.*options\.patch=7"):
        method(patch=11)


def test_the_imagenet_recipe_has_the_published_geometry_and_schedule():
    recipe = RECIPES["relative-location-imagenet"]
    options = recipe.options
    assert (recipe.cache_size, options.crop, options.crop // 3, options.patch) == (292, 255, 85, 64)
    assert (recipe.learning_rate, recipe.warmup, recipe.milestones, recipe.epochs) == (0.2, 5, (30, 50), 70)
    task = create(replace(recipe, backbone="resnet18"), 40)
    first, norm, _, dropout, last = task.head
    assert (first.out_features, last.out_features, dropout.p, norm.momentum) == (4096, 8, 0.5, 0.003)
    assert first.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert last.weight.std().item() == pytest.approx(0.005, rel=0.02)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("relative-location")])
def test_every_named_recipe_can_be_built(name):
    task = create(replace(RECIPES[name], backbone="resnet18"), 40)
    assert isinstance(task, RelativeLocationPrediction)
    assert task.network.projection is None
