"""Instance discrimination against naive formulas and the reference values of the papers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from index.errors import RecipeError
from training.backbone import build
from training.draws import Share
from training.methods import Batch, npid
from training.methods.npid import NPID
from training.recipes import Npid, Recipe

DIM, PICTURES = 128, 40


def unit(count, seed, dim=DIM):
    return F.normalize(torch.randn(count, dim, generator=Generator().manual_seed(seed)), dim=1)


def method(pictures=PICTURES, **options):
    torch.manual_seed(0)
    recipe = Recipe(
        name="test", about="", image_size=8, cache_size=8, width=0.25, stem="full", options=Npid(**options)
    )
    return NPID(build(recipe), recipe, pictures)


def batch(method, count=6, seed=5):
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=Generator().manual_seed(seed))
    share = Share.whole(count)
    return Batch(method.views(images, share.draw(seed)), torch.arange(count) * 3, share, seed)


def naive_softmax(embeddings, memory, rows, temperature):
    total = 0.0
    for v, row in zip(embeddings, rows, strict=True):
        scores = torch.stack([torch.exp((v * m).sum() / temperature) for m in memory])
        total = total - torch.log(scores[row] / scores.sum())
    return total / len(embeddings)


@pytest.mark.parametrize("columns", [1, 7, 40, 1000])
def test_the_softmax_equals_the_naive_formula_and_so_does_its_gradient(monkeypatch, columns):
    monkeypatch.setattr(npid, "_columns", lambda _: columns)
    memory, rows = unit(PICTURES, 1).double(), torch.tensor([0, 39, 7, 7])
    embeddings = unit(4, 2).double().requires_grad_()
    value = npid.instance_softmax(embeddings, memory, rows, 0.07)
    slow = naive_softmax(embeddings, memory, rows, 0.07)
    assert value.item() == pytest.approx(slow.item(), rel=1e-9)
    (fast_gradient,) = torch.autograd.grad(value * 3, embeddings)
    (slow_gradient,) = torch.autograd.grad(slow * 3, embeddings)
    assert torch.allclose(fast_gradient, slow_gradient, atol=1e-10)


@pytest.mark.parametrize("near", [0.0, 3.0])
def test_the_softmax_in_bfloat16_is_the_naive_one_but_for_rounding(monkeypatch, near):
    monkeypatch.setattr(npid, "_columns", lambda _: 700)  # several chunks, the last one short
    memory, rows = unit(5000, 1), torch.arange(0, 64 * 70, 70)
    embeddings = F.normalize(unit(64, 2) + near * memory[rows], dim=1).requires_grad_()
    value = npid.instance_softmax(embeddings, memory, rows, 0.07, half=True)
    exact = F.cross_entropy(embeddings @ memory.T / 0.07, rows)
    assert value.item() == pytest.approx(exact.item(), rel=2e-3)
    (rough,), (gradient,) = torch.autograd.grad(value, embeddings), torch.autograd.grad(exact, embeddings)
    assert (rough - gradient).norm() < 5e-3 * gradient.norm()


def test_the_softmax_over_a_memory_of_one_picture_is_certain():
    memory = unit(1, 1)
    value = npid.instance_softmax(unit(3, 2).requires_grad_(), memory, torch.zeros(3, dtype=torch.int64), 0.07)
    assert value.item() == pytest.approx(0, abs=1e-6)


def test_the_softmax_over_shared_samples_equals_the_naive_formula_and_so_does_its_gradient():
    memory, rows = unit(PICTURES, 1).double(), torch.tensor([0, 39, 7])
    shared = torch.tensor([3, 7, 7, 20, 39])  # some are a picture's own, once or twice: not told from itself
    embeddings = unit(3, 2).double().requires_grad_()
    total = torch.zeros(())
    for v, row in zip(embeddings, rows, strict=True):
        own = torch.exp(v @ memory[row] / 0.07)
        others = sum(torch.exp(v @ memory[j] / 0.07) for j in shared if j != row)
        total = total - torch.log(own / (own + others)) / 3
    value = npid.shared_contrast(embeddings, memory, rows, shared, 0.07)
    assert value.item() == pytest.approx(total.item(), rel=1e-9)
    (fast,), (slow,) = torch.autograd.grad(value, embeddings), torch.autograd.grad(total, embeddings)
    assert torch.allclose(fast, slow, atol=1e-10)


def test_the_softmax_survives_a_temperature_that_overflows_exp():
    memory = unit(PICTURES, 1)
    value = npid.instance_softmax(memory[:3].clone().requires_grad_(), memory, torch.arange(3), 1e-3)
    assert value.item() == pytest.approx(0, abs=1e-4)


def naive_nce(logits, partition, pictures):
    """§3.2, eq. 5 to 7, with probabilities written out."""
    noise = logits.shape[1] - 1
    total = 0.0
    for row in logits:
        p = torch.exp(row) / partition
        h = p / (p + noise / pictures)
        total = total - torch.log(h[0]) - torch.log(1 - h[1:]).sum()
    return total / len(logits)


def test_nce_equals_the_naive_formula_and_so_does_its_gradient():
    logits = (torch.randn(5, 33, generator=Generator().manual_seed(0)).double() * 2).requires_grad_()
    partition = torch.tensor(70.0, dtype=torch.float64)
    fast, slow = npid.noise_contrast(logits, partition, 50), naive_nce(logits, partition, 50)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-9)
    (g1,), (g2,) = torch.autograd.grad(fast, logits), torch.autograd.grad(slow, logits)
    assert torch.allclose(g1, g2, atol=1e-10)


def test_the_estimated_partition_is_that_of_random_vectors():
    # Z = N · E[exp(v·m/τ)] ≈ N · exp(1/(2dτ²)) for random unit vectors.
    memory, tau = npid.initial_memory(50_000, DIM), 0.1
    logits = unit(64, 3) @ memory.T / tau
    predicted = 50_000 * math.exp(1 / (2 * DIM * tau**2))
    assert npid.estimate_partition(logits, 50_000).item() == pytest.approx(predicted, rel=0.01)


def test_the_loss_at_the_start_is_that_of_the_paper():
    memory = npid.initial_memory(50_000, DIM)
    rows = torch.arange(64) * 700
    value = npid.instance_softmax(unit(64, 4), memory, rows, 0.1)
    assert value.item() == pytest.approx(11.21, abs=0.3)  # ln 73.9k for CIFAR-10 at τ = 0.1
    negatives = torch.randint(50_000, (64, 4096), generator=Generator().manual_seed(0))
    samples = torch.cat([rows[:, None], negatives], dim=1)
    logits = torch.einsum("bd,bmd->bm", unit(64, 4), memory[samples]) / 0.1
    partition = npid.estimate_partition(logits, 50_000)
    assert npid.noise_contrast(logits, partition, 50_000).item() == pytest.approx(9.7, abs=0.5)


def test_the_initial_memory_has_unit_rows_around_zero():
    memory = npid.initial_memory(2000, DIM)
    assert torch.allclose(memory.norm(dim=1), torch.ones(2000), atol=1e-5)
    assert memory.mean(dim=0).abs().max() < 0.01


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "nce", "negatives": 9},
        {"loss": "infonce", "negatives": 9},
        {"views": 2, "contrast": 1.0},
        {"proximal": 5.0},
    ],
)
def test_the_loss_is_a_function_called_twice_it_gives_the_same_and_writes_nothing(options):
    task = method(**options).train()
    given = batch(task)
    memory, partition = task.memory.clone(), task.partition.clone()
    first, second = task.loss(given), task.loss(given)
    assert first.value.item() == second.value.item()
    assert torch.equal(task.memory, memory)
    assert torch.equal(task.partition, partition)


def test_commit_mixes_old_and_new_by_the_weight_of_the_old_and_keeps_unit_length():
    task = method(old_weight=0.75)
    old = task.memory.clone()
    new = unit(3, 9)
    rows = torch.tensor([4, 0, 17])
    task.commit({"rows": rows, "vectors": new, "partition": torch.zeros(1)})
    expected = F.normalize(0.75 * old[rows] + 0.25 * new, dim=1)
    assert torch.allclose(task.memory[rows], expected, atol=1e-6)
    untouched = [row for row in range(PICTURES) if row not in (4, 0, 17)]
    assert torch.equal(task.memory[untouched], old[untouched])


def test_the_memory_holds_the_embeddings_when_the_old_ones_have_no_weight():
    task = method(old_weight=0.0)
    given = batch(task)
    loss = task.loss(given)
    task.commit(loss.pending)
    assert torch.allclose(task.memory[given.rows], loss.embeddings, atol=1e-6)


def test_the_partition_is_taken_once_or_followed():
    for kind in ("once", "ema"):
        task = method(loss="nce", negatives=16, partition=kind)
        first = task.loss(batch(task, seed=1)).pending
        assert task.partition == 0
        task.commit(first)
        assert task.partition == first["partition"].item() > 0
        task.commit(task.loss(batch(task, seed=2)).pending)
        assert (task.partition == first["partition"].item()) == (kind == "once")


def test_the_proximal_term_is_lambda_times_the_squared_step():
    plain, pulled = method(), method(proximal=5.0)
    given = batch(plain)
    a, b = plain.loss(given), pulled.loss(given)
    moved = (a.embeddings - plain.memory[given.rows]).square().sum(1).mean()
    assert (b.value - a.value).item() == pytest.approx(5 * moved.item(), rel=1e-4)


def test_the_contrast_of_views_equals_the_naive_formula():
    views = torch.stack([unit(5, 1), unit(5, 2)])
    both = views.flatten(0, 1)
    total = 0.0
    for i in range(10):
        scores = [math.exp(float(both[i] @ both[j]) / 0.2) if j != i else 0.0 for j in range(10)]
        total -= math.log(scores[(i + 5) % 10] / sum(scores))
    assert npid.view_contrast(views, 0.2).item() == pytest.approx(total / 10, rel=1e-5)


def test_a_contrast_of_one_view_is_refused():
    with pytest.raises(RecipeError, match=r"options\.views=2"):
        method(contrast=1.0)
