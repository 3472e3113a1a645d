"""The network: shapes, stems, widths, and what it refuses."""

import dataclasses

import pytest
import torch

from index.errors import RecipeError
from training.backbone import build


@pytest.mark.parametrize(
    ("stem", "size", "side"), [("imagenet", 64, 16), ("quarter", 64, 16), ("half", 32, 16), ("full", 16, 16)]
)
def test_a_stem_reduces_the_picture_as_it_says(tiny_recipe, stem, size, side):
    body = build(dataclasses.replace(tiny_recipe, stem=stem)).backbone
    x = body.maxpool(body.relu(body.bn1(body.conv1(torch.rand(2, 3, size, size)))))
    assert x.shape[-2:] == (side, side)


@pytest.mark.parametrize(
    ("name", "width", "features"),
    [("resnet18", 1.0, 512), ("resnet18", 0.5, 256), ("resnet34", 0.25, 128), ("resnet50", 0.25, 512)],
)
def test_features_and_embeddings_have_their_widths(tiny_recipe, name, width, features):
    network = build(dataclasses.replace(tiny_recipe, backbone=name, width=width)).eval()
    pooled = network.features(torch.rand(2, 3, 16, 16))
    assert pooled.shape == (2, features)
    assert network.feature_dim == features
    embeddings = network(torch.rand(2, 3, 16, 16))
    assert embeddings.shape == (2, 128)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(2), atol=1e-5)


def test_the_features_are_those_of_torchvision_s_own_forward(tiny_recipe):
    network = build(tiny_recipe).eval()
    images = torch.rand(2, 3, 16, 16)
    normalised = (images - network.mean) / network.std
    assert torch.allclose(network.features(images), network.backbone(normalised), atol=1e-6)


@pytest.mark.parametrize("size", [16, 24, 18])
def test_the_descriptor_holds_quarters_of_the_early_stages_and_the_features_last(tiny_recipe, size):
    network = build(tiny_recipe).eval()
    images = torch.rand(2, 3, size, size)
    first, second, third, last = network.descriptor(images)
    assert [part.shape[1] for part in (first, second, third, last)] == [64, 128, 64, 128]
    assert torch.equal(last, network.features(images))
    maps = network.stages(images)[0]
    if maps.shape[-1] % 2 == 0:
        pooled = torch.nn.functional.adaptive_avg_pool2d(maps, 2)
        assert torch.allclose(first, pooled.permute(0, 2, 3, 1).flatten(1), atol=1e-5)


def test_public_weights_of_torchvision_fit_without_renaming(tiny_recipe):
    from torchvision.models import resnet18

    network = build(dataclasses.replace(tiny_recipe, width=1.0, stem="imagenet"))
    missing = network.backbone.load_state_dict(resnet18().state_dict(), strict=False)
    assert missing.missing_keys == []
    assert missing.unexpected_keys == ["fc.weight", "fc.bias"]


def test_bfloat16_is_for_training_only(tiny_recipe):
    torch.manual_seed(0)
    exact = build(tiny_recipe)
    half = build(dataclasses.replace(tiny_recipe, precision="bfloat16"))
    half.load_state_dict(exact.state_dict())
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(half.eval()(images), exact.eval()(images))
    assert half.train()(images).dtype == torch.float32
    assert not torch.equal(half.train()(images), exact.train()(images))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"backbone": "alexnet"}, "a backbone among resnet18"),
        ({"stem": "third"}, "a stem among imagenet"),
        ({"width": 0.125}, "at least 128 features .* got 64"),
    ],
)
def test_an_impossible_network_is_refused(tiny_recipe, change, sentence):
    with pytest.raises(RecipeError, match=sentence):
        build(dataclasses.replace(tiny_recipe, **change))
