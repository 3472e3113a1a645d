"""BatchNorm over parts of a batch against BatchNorm2d on each part by itself."""

import copy

import pytest
import torch
from torch import Generator, nn

from index.errors import RecipeError
from training.backbone import build
from training.batchnorm import SplitBatchNorm2d, arrange_batchnorm, split_batchnorm
from training.recipes import MocoV2, Recipe

CPU = torch.device("cpu")


def maps(count=12, channels=5, side=3, seed=0):
    return torch.randn(count, channels, side, side, generator=Generator().manual_seed(seed)) * 3 + 1


def trained(norm, seed=1):
    """Return the layer with weights and running statistics that are not the initial ones."""
    generator = Generator().manual_seed(seed)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return norm


def split(norm, splits):
    whole = nn.Sequential(copy.deepcopy(norm))
    split_batchnorm(whole, splits)
    return whole[0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("splits", [1, 2, 3, 6])
def test_each_part_is_normalised_as_a_process_of_its_own_would(splits, layout):
    norm = trained(nn.BatchNorm2d(5))
    parted, processes = split(norm, splits), [copy.deepcopy(norm) for _ in range(splits)]
    for seed in range(3):
        images = maps(seed=seed).to(memory_format=layout)
        given, separate = images.clone().requires_grad_(), images.clone().requires_grad_()
        out = parted(given)
        slow = torch.cat([one(part) for one, part in zip(processes, separate.chunk(splits), strict=True)])
        assert torch.allclose(out, slow, atol=1e-6)
        assert out.is_contiguous(memory_format=layout)
        weights = maps(seed=seed + 10)
        (out * weights).sum().backward()
        (slow * weights).sum().backward()
        assert torch.allclose(given.grad, separate.grad, atol=1e-5)
        for name in ("running_mean", "running_var"):  # the processes average their buffers
            average = torch.stack([getattr(one, name) for one in processes]).mean(dim=0)
            assert torch.allclose(getattr(parted, name), average, atol=1e-6)
            for one in processes:
                getattr(one, name).copy_(average)
    summed = sum(one.weight.grad for one in processes)
    assert torch.allclose(parted.weight.grad, summed, atol=1e-4)
    assert parted.num_batches_tracked == processes[0].num_batches_tracked


def test_without_momentum_the_running_statistics_are_the_plain_mean():
    norm = split(nn.BatchNorm2d(5, momentum=None), 3)
    batches = [maps(seed=seed) for seed in range(4)]
    for images in batches:
        norm(images)
    every = torch.stack([images.mean(dim=(0, 2, 3)) for images in batches]).mean(dim=0)
    assert torch.allclose(norm.running_mean, every, atol=1e-6)


def test_in_evaluation_and_on_disk_it_is_a_batchnorm():
    norm = trained(nn.BatchNorm2d(5))
    parted = split(norm, 4)
    assert list(parted.state_dict()) == list(norm.state_dict())
    assert torch.equal(parted.eval()(maps(7)), norm.eval()(maps(7)))  # 7 need not divide by 4
    restored = split(nn.BatchNorm2d(5), 4)
    restored.load_state_dict(norm.state_dict())
    assert torch.equal(restored.eval()(maps(7)), norm(maps(7)))


def test_bfloat16_maps_have_float32_statistics():
    parted = split(nn.BatchNorm2d(5), 3)
    images = maps().to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = parted(images)
    assert out.dtype == torch.bfloat16
    exact = split(nn.BatchNorm2d(5), 3)
    slow = exact(images.float())
    assert torch.allclose(out.float(), slow, atol=0.03)
    assert torch.allclose(parted.running_var, exact.running_var, rtol=1e-3)


@pytest.mark.parametrize("count", [10, 3, 4])
def test_a_batch_that_does_not_divide_into_parts_of_two_or_more_is_refused(count):
    with pytest.raises(RecipeError, match=r"bn_splits=4 equal parts .* got " + str(count)):
        split(nn.BatchNorm2d(5), 4)(maps(count))


def test_a_network_is_converted_whole_and_keeps_its_tensors():
    recipe = Recipe(
        name="test", about="", options=MocoV2(), image_size=8, cache_size=8, width=0.25, stem="full", bn_splits=4
    )
    network = build(recipe)
    before = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    arrange_batchnorm(network, recipe, CPU)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert all(isinstance(norm, SplitBatchNorm2d) and norm.splits == 4 for norm in norms)
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == before
    assert "splits=4" in repr(network)
