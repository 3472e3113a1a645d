"""Momentum contrast against slow loops, a deque and the reference values of the paper's users."""

import copy
import math
import subprocess
import sys
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, nn

from index.errors import RecipeError
from training.batchnorm import split_batchnorm
from training.draws import Share
from training.methods import Batch, create, moco_v2
from training.recipes import RECIPES, MocoV2, Recipe

DIM = 128


def unit(count, seed, dim=DIM):
    return F.normalize(torch.randn(count, dim, generator=Generator().manual_seed(seed)), dim=1)


def method(splits=1, compiled=False, **options):
    torch.manual_seed(0)
    recipe = Recipe(
        name="test",
        about="",
        options=MocoV2(**{"queue": 50, **options}),
        image_size=8,
        cache_size=8,
        width=0.25,
        stem="full",
        bn_splits=splits,
        batch_size=8,
        compile=compiled,
    )
    task = create(recipe, 40).train()
    if splits > 1:
        split_batchnorm(task, splits)
    return task


def batch(task, count=8, seed=5):
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=Generator().manual_seed(seed))
    share = Share.whole(count)
    return Batch(task.views(images, share.draw(seed)), torch.arange(count), share, seed)


def naive_contrast(queries, keys, queue, temperature):
    """Eq. 1, query by query, with probabilities written out."""
    total, won = 0.0, []
    for query, key in zip(queries, keys, strict=True):
        own = torch.exp((query * key).sum() / temperature)
        others = torch.stack([torch.exp((query * one).sum() / temperature) for one in queue])
        total = total - torch.log(own / (own + others.sum()))
        won.append(bool(own > others.max()))
    return total / len(queries), won


def test_the_contrast_equals_the_naive_formula_and_so_does_its_gradient():
    queries, queue = unit(6, 1, 4).double().requires_grad_(), unit(9, 2, 4).double()
    keys = F.normalize(queries.detach() + 2 * unit(6, 3, 4), dim=1)
    value, won = moco_v2.queue_contrast(queries, keys, queue, 0.2)
    slow, slow_won = naive_contrast(queries, keys, queue, 0.2)
    assert value.item() == pytest.approx(slow.item(), rel=1e-9)
    assert won.tolist() == slow_won
    assert 0 < sum(slow_won) < 6
    (g1,), (g2,) = torch.autograd.grad(value, queries), torch.autograd.grad(slow, queries)
    assert torch.allclose(g1, g2, atol=1e-10)


def test_the_contrast_survives_a_temperature_that_overflows_exp():
    keys = unit(3, 1)
    value, won = moco_v2.queue_contrast(keys, keys, unit(50, 2), 1e-3)
    assert value.item() == pytest.approx(0, abs=1e-4)
    assert won.all()


@pytest.mark.parametrize(("size", "temperature", "level"), [(65_536, 0.2, 11.19), (4096, 0.1, 8.71)])
def test_random_keys_give_the_level_of_a_network_that_knows_nothing(size, temperature, level):
    # ln(1 + K · E[exp(q·k/τ)]) with E = exp(1/(2dτ²)) for random unit vectors: what the loss rises towards.
    predicted = math.log(1 + size * math.exp(1 / (2 * DIM * temperature**2)))
    assert predicted == pytest.approx(level, abs=0.01)
    value, won = moco_v2.queue_contrast(unit(64, 1), unit(64, 2), unit(size, 3), temperature)
    assert value.item() == pytest.approx(predicted, abs=0.3)  # ± the positives' own 1/(τ√(64 d))
    assert won.float().mean() < 0.1


def test_an_untrained_network_finds_every_pair_in_a_queue_of_random_keys():
    # All its embeddings are alike, so q·k₊ ≈ 1 is far above the queue: low at first, and the note says why.
    task = method(queue=4096)
    loss = task.loss(batch(task))
    assert loss.metrics["contrast_accuracy"] == 1
    assert loss.value < math.log(4097)
    close = float(1 - loss.metrics["alignment"] / 2)  # mean q·k₊
    predicted = math.log(1 + 4096 * math.exp(1 / (2 * DIM * 0.2**2) - close / 0.2))
    assert loss.value.item() == pytest.approx(predicted, abs=0.3)
    assert "rises at first" in task.note


def test_the_loss_rises_while_real_keys_fill_the_queue():
    task = method(queue=64)
    values = []
    for step in range(9):
        loss = task.loss(batch(task, seed=step))
        task.commit(loss.pending)
        values.append(loss.value.item())
    assert all(value > values[0] + 0.5 for value in values[1:])
    assert values[-1] > values[1] + 0.5


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 20), counts=st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_the_queue_holds_what_a_deque_would_for_any_size_and_any_number_of_keys(size, counts):
    queue, pointer = torch.arange(-size, 0.0)[:, None], torch.zeros((), dtype=torch.int64)
    slow = deque(queue.flatten().tolist(), maxlen=size)
    number = 0.0
    for count in counts:
        keys = torch.arange(number, number + count)
        number += count
        moco_v2.enqueue(queue, pointer, keys[:, None])
        slow.extend(keys.tolist())
        assert queue.flatten().roll(-int(pointer)).tolist() == list(slow)  # the oldest first


def test_the_key_network_keeps_old_weight_of_itself_and_its_own_statistics():
    task = method(old_weight=0.75)
    with torch.no_grad():
        for parameter in task.network.parameters():
            parameter.add_(torch.randn(parameter.shape))
    before = copy.deepcopy(task.key)
    task.network.backbone.bn1.running_mean.fill_(9.0)
    task.commit({"keys": unit(4, 1)})
    moved = zip(before.parameters(), task.key.parameters(), task.network.parameters(), strict=True)
    for old, new, trained in moved:
        assert torch.allclose(new, 0.75 * old + 0.25 * trained, atol=1e-6)
    for old, new in zip(before.buffers(), task.key.buffers(), strict=True):
        assert torch.equal(new, old)


def test_the_key_network_begins_as_the_trained_one_and_shares_nothing_with_it():
    task = method()
    for one, other in zip(task.key.parameters(), task.network.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()


def test_a_compiled_key_network_computes_with_its_own_weights():
    # The kernels of a deep copy would still be bound to the trained network.
    task = method(compiled=True)
    views = batch(task).views[0]
    with torch.compiler.set_stance("force_eager"):
        before = task.key(views)
        with torch.no_grad():
            for parameter in task.network.parameters():
                parameter.mul_(2)
        assert torch.equal(task.key(views), before)
        assert not torch.allclose(task.network(views), before, atol=1e-3)


@pytest.mark.parametrize("symmetric", [False, True])
def test_no_gradient_reaches_the_key_network_or_the_queue(symmetric):
    task = method(symmetric=symmetric, splits=2)
    task.loss(batch(task)).value.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in task.key.parameters())
    assert not task.queue.requires_grad
    assert all(parameter.grad.abs().sum() > 0 for parameter in task.network.parameters() if parameter.ndim > 1)


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"splits": 4}, {"shuffle": False, "head": "linear"}])
def test_the_loss_is_a_function_called_twice_it_gives_the_same_and_writes_nothing(options):
    task = method(**options)
    given_batch = batch(task)
    parameters = [parameter.clone() for parameter in task.parameters()]
    queue, pointer = task.queue.clone(), task.pointer.clone()
    first, second = task.loss(given_batch), task.loss(given_batch)
    assert first.value.item() == second.value.item()
    assert torch.equal(first.pending["keys"], second.pending["keys"])
    assert torch.equal(task.queue, queue)
    assert torch.equal(task.pointer, pointer)
    assert all(map(torch.equal, task.parameters(), parameters))


def test_the_loss_is_that_of_its_own_queries_and_keys():
    task = method()
    given_batch = batch(task)
    first, second = given_batch.views
    queries, keys = task.network(first), task.key(second)
    slow, _ = naive_contrast(queries, keys, task.queue, 0.2)
    loss = task.loss(given_batch)
    assert loss.value.item() == pytest.approx(slow.item(), rel=1e-4)
    assert torch.allclose(loss.pending["keys"], keys, atol=1e-5)
    assert loss.metrics["alignment"].item() == pytest.approx(
        (queries - keys).square().sum(1).mean().item(), rel=1e-3
    )


def test_a_symmetric_loss_is_the_sum_of_both_directions_and_queues_both_views():
    both, single = method(symmetric=True), method()
    given_batch = batch(both)
    first, second = given_batch.views
    forth = single.loss(given_batch)
    back = single.loss(Batch((second, first), given_batch.rows, given_batch.share, given_batch.seed))
    loss = both.loss(given_batch)
    assert loss.value.item() == pytest.approx(forth.value.item() + back.value.item(), rel=1e-4)
    keys = torch.cat([forth.pending["keys"], back.pending["keys"]])
    assert torch.allclose(loss.pending["keys"], keys, atol=1e-5)


def test_shuffling_is_undone_exactly():
    task = method(splits=2)
    views = batch(task).views[0]
    task.key.eval()  # no statistics of the batch: the order cannot matter
    plain = task.key(views)
    for seed in range(4):
        assert torch.allclose(moco_v2.shuffled(task.key, views, seed), plain, atol=1e-6)


def test_shuffled_keys_are_normalised_with_other_pictures_than_their_queries():
    task = method(splits=2)
    views = batch(task).views[0]
    plain = task.key(views)
    order = torch.randperm(8, generator=Generator().manual_seed(3))
    assert sorted(order[:4].tolist()) != [0, 1, 2, 3]
    keys = moco_v2.shuffled(task.key, views, 3)
    assert (keys - plain).abs().max() > 1e-3
    slow = torch.empty_like(keys)
    slow[order] = task.key(views[order])
    assert torch.allclose(keys, slow, atol=1e-6)


PROCESS = """
import sys
import torch
import torch.distributed as dist
from training.methods.moco_v2 import shuffled
rank, store, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
norm = torch.nn.BatchNorm2d(3)
images = torch.load(f"{folder}/images.pt", weights_only=True)
keys = shuffled(lambda part: norm(part).flatten(1), images.chunk(2)[rank], 3)
torch.save(keys, f"{folder}/keys-{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_shuffle_as_one_process_with_split_batchnorm(tmp_path):
    images = torch.randn(8, 3, 4, 4, generator=Generator().manual_seed(0))
    torch.save(images, tmp_path / "images.pt")
    command = [sys.executable, "-c", PROCESS]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), str(tmp_path)], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    keys = torch.cat([torch.load(tmp_path / f"keys-{rank}.pt", weights_only=True) for rank in range(2)])
    norm = nn.Sequential(nn.BatchNorm2d(3))
    split_batchnorm(norm, 2)
    alone = moco_v2.shuffled(lambda part: norm(part).flatten(1), images, 3)
    assert torch.allclose(keys, alone, atol=1e-6)
    assert not torch.allclose(keys, norm(images).flatten(1), atol=1e-2)


def test_it_learns_to_find_its_pictures():
    task = method(queue=32, old_weight=0.9, splits=2)
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    colours = torch.randint(0, 256, (48, 3, 2, 2), dtype=torch.uint8, generator=Generator().manual_seed(0))
    pictures = colours.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    share, found = Share.whole(16), []
    for step in range(45):
        rows = torch.arange(16) + step % 3 * 16
        loss = task.loss(Batch(task.views(pictures[rows], share.draw(step)), rows, share, step))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        task.commit(loss.pending)
        found.append(loss.metrics["contrast_accuracy"].item())
    assert sum(found[-9:]) / 9 > 0.4  # the best of 33; at random 0.03


@pytest.mark.parametrize(
    ("options", "message"), [({"queue": 0}, "queue at least 1"), ({"old_weight": 1.5}, "old_weight")]
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        MocoV2(**options)


def test_the_recipes_have_the_published_values():
    cifar10, imagenet = RECIPES["moco-v2-cifar10"], RECIPES["moco-v2-imagenet"]
    assert cifar10.options == MocoV2(0.1, 4096, 0.99, head="linear", symmetric=False, shuffle=True)
    assert (cifar10.bn_splits, cifar10.batch_size, cifar10.learning_rate) == (8, 512, 0.06)
    assert imagenet.options == MocoV2(0.2, 65_536, 0.999, head="mlp")
    assert create(cifar10, 10).network.projection.weight.shape == (128, 512)
