"""The views, picture by picture against slow oracles, and their statistics."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from torch import Generator

from training import augment
from training.draws import Draw, Share
from training.recipes import Augmentation

STILL = Augmentation(crop_area=1.0, crop_ratio=1.0, flip=0.0, jitter=0.0, grayscale=0.0)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def draw(count: int, seed: int = 0) -> Draw:
    return Share.whole(count).draw(seed)


def pictures(count: int = 6, side: int = 24, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=generator(seed))


def test_a_view_without_any_change_is_the_picture():
    images = (pictures() * 255).round().to(torch.uint8)
    assert torch.allclose(augment.view(images, 24, STILL, draw(6)), images / 255, atol=1e-5)


def test_the_same_seed_gives_the_same_views_and_another_seed_others():
    images = (pictures() * 255).to(torch.uint8)
    chosen = Augmentation(rotation=10, blur=0.5)
    once = augment.view(images, 16, chosen, draw(6, 3))
    assert torch.equal(once, augment.view(images, 16, chosen, draw(6, 3)))
    assert not torch.equal(once, augment.view(images, 16, chosen, draw(6, 4)))


def test_views_stay_within_zero_and_one_under_every_change():
    images = (pictures(32) * 255).to(torch.uint8)
    views = augment.view(images, 16, Augmentation(rotation=30, blur=1.0, hue=0.5), draw(32))
    assert views.shape == (32, 3, 16, 16)
    assert views.min() >= -1e-5
    assert views.max() <= 1 + 1e-5


def test_each_picture_draws_its_own_parameters():
    same = (pictures(1) * 255).to(torch.uint8).expand(8, -1, -1, -1)
    views = augment.view(same, 16, Augmentation(), draw(8))
    assert len({float(view.sum()) for view in views}) == 8


def test_crop_equals_a_slow_bilinear_sampler():
    images = pictures(3, side=9)
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0], [0.3, 0.05, 0.7, 0.4]])
    flip = torch.tensor([False, True, True])
    angles = torch.tensor([0.0, 0.0, 0.3])
    result = augment.crop(images, boxes, 7, flip=flip, angles=angles)
    for b in range(3):
        slow = slow_crop(images[b], boxes[b], 7, bool(flip[b]), angles[b])
        assert np.allclose(result[b].numpy(), slow, atol=1e-5)


def slow_crop(image, box, size, flip, angle):
    """Walk over the result's pixels; the point each one comes from is looked up between its four neighbours."""
    left, top, width, height = (float(value) for value in box)
    side = image.shape[-1]
    out = np.zeros((3, size, size))
    for y in range(size):
        for x in range(size):
            u, v = (2 * x + 1) / size - 1, (2 * y + 1) / size - 1
            u = -u if flip else u
            cos, sin = math.cos(angle), math.sin(angle)
            px = left + width / 2 + (width * cos * u - height * sin * v) / 2
            py = top + height / 2 + (width * sin * u + height * cos * v) / 2
            fx, fy = min(max(px * side - 0.5, 0), side - 1), min(max(py * side - 0.5, 0), side - 1)
            x0, y0 = int(fx), int(fy)
            x1, y1 = min(x0 + 1, side - 1), min(y0 + 1, side - 1)
            ax, ay = fx - x0, fy - y0
            upper = (1 - ax) * image[:, y0, x0] + ax * image[:, y0, x1]
            lower = (1 - ax) * image[:, y1, x0] + ax * image[:, y1, x1]
            out[:, y, x] = (1 - ay) * upper + ay * lower
    return out


def test_crop_boxes_follow_their_distribution_and_never_stick_out():
    boxes = augment.crop_boxes(0.2, 4 / 3, draw(20_000))
    left, top, width, height = boxes.unbind(1)
    area = width * height
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 1 + 1e-6).all()
    assert (top + height <= 1 + 1e-6).all()
    assert area.min() >= 0.2 - 1e-6
    assert (width / height).max() <= 4 / 3 + 1e-5
    # torchvision's algorithm, drawn the slow way, has the same mean area: rejection favours smaller regions.
    rng = np.random.default_rng(0)
    slow = [slow_area(rng) for _ in range(20_000)]
    assert float(area.mean()) == pytest.approx(np.mean(slow), abs=0.01)


def slow_area(rng):
    for _ in range(10):
        share, ratio = rng.uniform(0.2, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        if math.sqrt(share * ratio) <= 1 and math.sqrt(share / ratio) <= 1:
            return share
    return 1.0


def test_jitter_equals_torchvision_picture_by_picture():
    images = pictures()
    factors = [torch.rand(6, generator=generator(seed)) + 0.5 for seed in (2, 3, 4)]
    hue = torch.rand(6, generator=generator(5)) - 0.5
    result = augment.jitter(images, *factors, hue)
    for b, image in enumerate(images):
        slow = TF.adjust_brightness(image, float(factors[0][b]))
        slow = TF.adjust_contrast(slow, float(factors[1][b]))
        slow = TF.adjust_saturation(slow, float(factors[2][b]))
        slow = TF.adjust_hue(slow, float(hue[b]))
        assert torch.allclose(result[b], slow, atol=2e-3)  # torchvision's luma weights have four digits, ours three


def test_a_hue_shift_of_a_whole_circle_changes_nothing_and_grey_has_no_hue():
    images = pictures()
    assert torch.allclose(augment.shift_hue(images, torch.ones(6)), images, atol=1e-5)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(augment.shift_hue(grey, torch.full((6,), 0.3)), grey, atol=1e-6)


def test_blur_equals_torchvision_and_keeps_a_flat_picture():
    images, sigmas = pictures(), torch.tensor([0.1, 0.4, 0.8, 1.2, 1.6, 2.0])
    result = augment.blur(images, sigmas)
    for b, image in enumerate(images):
        assert torch.allclose(result[b], TF.gaussian_blur(image, [13, 13], [float(sigmas[b])] * 2), atol=1e-4)
    flat = torch.full((2, 3, 8, 8), 0.7)
    assert torch.allclose(augment.blur(flat, torch.tensor([1.0, 2.0])), flat, atol=1e-5)


@pytest.mark.parametrize(("field", "probability"), [("grayscale", 0.2), ("flip", 0.5)])
def test_probabilities_are_met(field, probability):
    left_red = torch.zeros(4000, 3, 4, 4, dtype=torch.uint8)
    left_red[:, 0, :, :2] = 200
    chosen = Augmentation(**{**vars(STILL), field: probability})
    views = augment.view(left_red, 4, chosen, draw(len(left_red)))
    grey = (views[:, 0] == views[:, 1]).flatten(1).all(1)
    flipped = views[:, 0, 0, 3] > views[:, 0, 0, 0]
    share = float((grey if field == "grayscale" else flipped).float().mean())
    assert share == pytest.approx(probability, abs=0.03)


def test_gray_before_jitter_leaves_no_colour_to_turn_and_jitter_before_gray_does():
    images = (pictures(8) * 255).round().to(torch.uint8)
    hues = replace(STILL, jitter=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.5, grayscale=1.0)
    gray = augment.luma(images / 255).expand(-1, 3, -1, -1)
    first = augment.view(images, 24, replace(hues, order="gray-jitter"), draw(8))
    last = augment.view(images, 24, replace(hues, order="jitter-gray"), draw(8))
    assert torch.allclose(first, gray, atol=1e-4)
    assert (last - gray).abs().max() > 0.05
    assert torch.allclose(last[:, 0], last[:, 1], atol=1e-5)


def test_a_shifted_view_is_a_slice_of_the_padded_picture_mirrored_or_not():
    images = (pictures(200, side=12) * 255).round().to(torch.uint8)
    views = augment.view(images, 12, replace(STILL, shift=2, flip=0.5), draw(200))
    padded = torch.nn.functional.pad(images / 255, (2, 2, 2, 2))
    places = []
    for picture, seen in zip(padded, views, strict=True):
        found = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if torch.allclose(
                seen, picture[:, top : top + 12, left : left + 12].flip(-1 if mirrored else ()), atol=1e-6
            )
        ]
        assert len(found) == 1
        places += found
    tops, lefts, mirrored = zip(*places, strict=True)
    for values in (tops, lefts):  # uniform over five places: 40 each, standard deviation 5.7
        assert all(15 < values.count(place) < 65 for place in range(5))
    assert 60 < sum(mirrored) < 140
