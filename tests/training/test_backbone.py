"""The network: shapes, stems, widths, and what it refuses."""

import dataclasses
import math

import onnxruntime
import pytest
import torch
import torchvision
from torch import nn

from index.errors import RecipeError
from training import torchvision_models
from training.backbone import Network, build
from training.graph import Graph, trace
from training.recipes import Npid, Recipe

# Where each network of torchvision keeps the layer that pretraining has no use for.
CLASSIFIERS = {
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "regnet_y_400mf": "fc",
    "squeezenet1_1": "classifier.1",
    "swin_t": "head",
    "vit_b_16": "heads.head",
}
LARGE = [name for name in CLASSIFIERS if name not in ("mobilenet_v3_small", "squeezenet1_1")]

EXPORTED = ["convnext_tiny", "efficientnet_b0", "mobilenet_v3_small", "swin_t", "vit_b_16"]


@pytest.fixture
def plain_recipe(tiny_recipe):
    """The tiny recipe with the first layers and channels that every network has."""
    return dataclasses.replace(tiny_recipe, width=1.0, stem="imagenet", image_size=32)


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


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2"])
def test_public_weights_of_torchvision_fit_without_renaming(plain_recipe, name):
    with torch.device("meta"):
        public = torchvision.models.get_model(name, weights=None).state_dict()
    own = build(dataclasses.replace(plain_recipe, backbone=name)).backbone.state_dict()
    assert {key: value.shape for key, value in own.items()} == {
        key: value.shape for key, value in public.items() if not key.startswith("fc.")
    }


def test_a_wide_network_doubles_the_inside_of_its_bottlenecks_at_any_width(tiny_recipe):
    plain = build(dataclasses.replace(tiny_recipe, backbone="resnet50")).backbone
    wide = build(dataclasses.replace(tiny_recipe, backbone="wide_resnet50_2")).backbone
    assert wide.layer4[2].conv2.weight.shape[0] == 2 * plain.layer4[2].conv2.weight.shape[0]
    assert wide.layer4[2].conv3.weight.shape[0] == plain.layer4[2].conv3.weight.shape[0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in CLASSIFIERS]
)
def test_any_network_of_torchvision_gives_what_its_own_forward_gives_to_the_classifier(plain_recipe, name):
    network = build(dataclasses.replace(plain_recipe, backbone=name)).eval()
    sizes = {"image_size": 32} if name == "vit_b_16" else {}
    public = torchvision.models.get_model(name, weights=None, **sizes)
    loaded = public.load_state_dict(network.backbone.state_dict(), strict=False)
    path = CLASSIFIERS[name]
    assert loaded.unexpected_keys == []
    assert loaded.missing_keys == [f"{path}.weight", f"{path}.bias"]
    public.set_submodule(path, nn.Identity())
    images = torch.rand(3, 3, 32, 32)
    expected = public.eval()((images - network.mean) / network.std)
    assert expected.shape == (3, network.feature_dim)
    assert torch.allclose(network.features(images), expected, atol=1e-5)
    (descriptor,) = network.descriptor(images)
    assert torch.equal(descriptor, network.features(images))


def test_what_is_evaluated_keeps_up_with_what_is_trained_in_a_short_run(plain_recipe):
    torch.manual_seed(0)
    network = build(dataclasses.replace(plain_recipe, backbone="mobilenet_v3_small"))
    images = torch.rand(16, 3, 1, 1).expand(-1, -1, 32, 32)
    with torch.no_grad():
        for _ in range(80):
            network.features(images)
        features = nn.functional.normalize(network.eval().features(images), dim=1)
    # With torchvision's own momentum of 0.01 all pictures look the same here, to six digits.
    assert features.std(dim=0).norm() > 0.1


@pytest.mark.slow
def test_every_classification_network_of_torchvision_has_a_classifier_to_remove():
    for name in torchvision_models.names():
        if name.startswith("regnet_"):
            continue  # they compute while they are built, which needs real tensors; one is above
        with torch.device("meta"):
            network, features = torchvision_models._without_classifier(name, 224)
            assert network.eval()(torch.empty(2, 3, 224, 224)).shape == (2, features), name


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", *(pytest.param(name, marks=pytest.mark.slow) for name in EXPORTED)]
)
def test_any_network_learns_and_computes_the_same_in_onnx_runtime(plain_recipe, name):
    network = build(dataclasses.replace(plain_recipe, backbone=name))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    (network(torch.rand(4, 3, 32, 32)) * torch.rand(4, 128)).sum().backward()
    optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)  # the rest are weights behind a ReLU that stayed shut
    graph = Graph(network.eval()).eval()
    session = onnxruntime.InferenceSession(trace(graph, 32).SerializeToString())
    for batch in (1, 5):
        images = torch.randint(256, (batch, 32, 32, 3), dtype=torch.uint8)
        with torch.inference_mode():
            expected = graph(images)
        (given,) = session.run(None, {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(given), expected, atol=1e-4)


def test_bfloat16_is_for_training_only(tiny_recipe):
    torch.manual_seed(0)
    exact = build(tiny_recipe)
    half = build(dataclasses.replace(tiny_recipe, precision="bfloat16"))
    half.load_state_dict(exact.state_dict())
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(half.eval()(images), exact.eval()(images))
    assert half.train()(images).dtype == torch.float32
    assert not torch.equal(half.train()(images), exact.train()(images))


@pytest.mark.slow
def test_compiled_kernels_compute_the_same_and_leave_evaluation_and_names_alone(tiny_recipe):
    torch.manual_seed(0)
    plain = build(tiny_recipe)
    compiled = build(dataclasses.replace(tiny_recipe, compile=True))
    compiled.load_state_dict(plain.state_dict())
    images, towards = torch.rand(8, 3, 16, 16), torch.rand(8, 128)
    assert torch.equal(compiled.eval()(images), plain.eval()(images))
    gradients = []
    for network in (plain, compiled):
        loss = (network.train()(images) * towards).sum()
        loss.backward()
        gradients.append((loss, network.backbone.conv1.weight.grad))
    (loss, gradient), (other_loss, other_gradient) = gradients
    assert torch.allclose(loss, other_loss, rtol=1e-4)
    assert torch.allclose(gradient, other_gradient, rtol=1e-3, atol=1e-4)
    for own, other in zip(plain.buffers(), compiled.buffers(), strict=True):
        assert torch.allclose(own, other, atol=1e-5)


def test_views_of_another_size_than_a_network_of_one_size_takes_are_refused():
    network = Network(nn.Flatten(), 3 * 16 * 16, None, side=16)
    assert network.features(torch.rand(2, 3, 16, 16)).shape == (2, 768)
    with pytest.raises(RecipeError, match=r"views of 16 px, the one size .* got 24; take a convolutional backbone"):
        network.features(torch.rand(2, 3, 24, 24))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"backbone": "resnet19"}, "that torchvision has, got 'resnet19'; did you mean resnet18"),
        ({"backbone": "covnext_tiny"}, "did you mean convnext_tiny"),
        ({"backbone": "?"}, "any classification network of torchvision will do"),
        ({"stem": "third"}, "a stem among imagenet"),
        ({"width": 0.125}, "at least 128 features .* got 64 .* raise width"),
        (
            {"backbone": "swin_t"},
            "stem=imagenet and width=1 for swin_t, got stem=half and width=0.25; only resnet18",
        ),
    ],
)
def test_an_impossible_network_is_refused(tiny_recipe, change, sentence):
    with pytest.raises(RecipeError, match=sentence):
        build(dataclasses.replace(tiny_recipe, **change))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"backbone": "vit_b_16", "image_size": 100}, "a multiple of the 16 px patches .* set image_size=96"),
        ({"backbone": "vit_h_14", "image_size": 8}, "a multiple of the 14 px patches .* set image_size=14"),
        ({"backbone": "squeezenet1_1", "image_size": 8}, "that squeezenet1_1 can work with, got 8"),
        ({"backbone": "maxvit_t", "image_size": 64}, "that maxvit_t can work with, got 64; set image_size=224"),
        ({"backbone": "squeezenet1_1", "dim": 513}, "at least 513 features .* got 512 .* lower dim"),
    ],
)
def test_pictures_or_embeddings_that_a_network_cannot_do_are_refused(plain_recipe, change, sentence):
    with pytest.raises(RecipeError, match=sentence):
        build(dataclasses.replace(plain_recipe, **change))


def test_a_network_too_large_for_one_file_is_refused(plain_recipe, monkeypatch):
    monkeypatch.setattr(torchvision_models, "_BYTES", 2_000_000)  # the real ones take seconds and gigabytes
    with pytest.raises(RecipeError, match=r"weights of at most 0\.002 GB.* from squeezenet1_1"):
        build(dataclasses.replace(plain_recipe, backbone="squeezenet1_1"))


def test_kernels_that_shrink_a_single_pixel_get_no_gradient_where_no_pixel_is_met():
    # In bfloat16 on a CPU those gradients were uninitialised memory, and the weights ended as NaN.
    recipe = Recipe(name="t", about="", options=Npid(), image_size=8, cache_size=8, width=0.25, stem="quarter")
    network = build(dataclasses.replace(recipe, precision="bfloat16")).train()
    junk = [torch.full((2**18,), math.nan) for _ in range(8)]
    del junk  # what uninitialised memory will hold
    network.features(torch.rand(64, 3, 8, 8)).square().sum().backward()
    kernel = network.backbone.layer4[0].conv1.weight.grad
    unmet = torch.ones(3, 3, dtype=torch.bool)
    unmet[1, 1] = False
    assert kernel[:, :, unmet].abs().max() == 0
    assert kernel[:, :, 1, 1].abs().max() > 0
