"""Pictures a second of our pretraining beside a plain loop of lightly's building blocks.

    python -m benchmarks.training_speed --recipe npid-demo --data examples/gallery
    python -m benchmarks.training_speed --recipe npid-cifar10-cpu --data cifar10-train.parquet --pictures 10000

lightly (github.com/lightly-ai/lightly, pip install lightly) is not among this project's extras; install it into an
environment of its own beside the training extra. Its loops are those of its documentation: a transform of PIL
pictures in DataLoader workers (one a core, kept alive), NTXentLoss, with a memory bank for MoCo, update_momentum.

All four have the network, head, batch, precision, optimiser and augmentation of the recipe, and pictures that were
decoded once and wait in memory (files would make lightly slower). MoCo is not symmetric and has one BatchNorm, as
in lightly's example. lightly has no instance discrimination with a memory of all pictures; the nearest thing is
its SimCLR loop, which encodes two views a picture as our NPID recipes do, and has no memory term.

The loops take turns; each turn begins with a few steps that do not count, so that batches which the workers had
ready are used up. CPU milliseconds a picture include the workers. On a busy machine take --threads 1: the threads
of a convolution wait for each other awake, and what they burn says nothing about either loop.
"""

import argparse
import importlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
from PIL import Image
from torch import Tensor

from index.cores import available_cores
from training.backbone import build
from training.data import Pictures, load_pictures
from training.distributed import Processes
from training.feed import Feed
from training.methods import Batch, create
from training.overrides import find
from training.plan import Plan, Stream
from training.recipes import MocoV2, Npid, Recipe
from training.update import Update, optimizer

WARM = 6  # steps before the clock runs; the workers hold at most two batches each
Step = Callable[[], float]


def ours(recipe: Recipe, pictures: Pictures, device: torch.device) -> Step:
    """Return a step of our loop; it returns the loss."""
    torch.manual_seed(0)
    method = create(recipe, len(pictures)).train().to(device)
    plan = Plan(recipe, len(pictures), Processes(0, 1, device))
    update = Update(list(method.parameters()), recipe, device)
    images = Feed(pictures, device).stream(plan.stream(0))
    numbers = iter(range(plan.steps))

    def step() -> float:
        number, share = next(numbers), plan.shares[0]
        with torch.no_grad():
            views = method.views(next(images), share.draw(plan.seed(Stream.VIEWS, number), device))
        rows = plan.rows(number, share).to(device)
        loss = method.loss(Batch(views, rows, share, plan.seed(Stream.NOISE, number)))
        update.backward(loss.value)
        update.step(recipe.learning_rate)
        with torch.no_grad():
            method.commit(loss.pending)
        return float(loss.value.detach())

    return step


class Decoded(torch.utils.data.Dataset[Any]):
    """Pictures as PIL images with a transform, as torchvision's CIFAR10 gives them."""

    def __init__(self, pictures: Pictures, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self._images = pictures.first(len(pictures)).permute(0, 2, 3, 1).contiguous().numpy()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> list[Tensor]:
        return self._transform(Image.fromarray(self._images[row]))


def endless(recipe: Recipe, pictures: Pictures, device: torch.device, workers: int) -> Iterator[list[Tensor]]:
    """Yield lightly's batches of two views, on the device."""
    augment = recipe.augment
    transform = importlib.import_module("lightly.transforms").MoCoV2Transform(
        input_size=recipe.image_size,
        cj_prob=augment.jitter,
        cj_strength=1.0,
        cj_bright=augment.brightness,
        cj_contrast=augment.contrast,
        cj_sat=augment.saturation,
        cj_hue=augment.hue,
        min_scale=augment.crop_area,
        random_gray_scale=augment.grayscale,
        gaussian_blur=augment.blur,
        hf_prob=augment.flip,
        rr_prob=1.0 if augment.rotation else 0.0,
        rr_degrees=augment.rotation or None,
        normalize=None,  # the network does that
    )
    loader = torch.utils.data.DataLoader(
        Decoded(pictures, transform),
        batch_size=recipe.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    while True:
        for views in loader:
            yield [each.to(device, non_blocking=True) for each in views]


def lightly_moco(recipe: Recipe, pictures: Pictures, device: torch.device, workers: int) -> Step:
    """Return a step of lightly's MoCo example."""
    options = cast("MocoV2", recipe.options)
    follow = importlib.import_module("lightly.models.utils").update_momentum
    losses = importlib.import_module("lightly.loss")
    torch.manual_seed(0)
    network = build(recipe).train().to(device)
    momentum = deepcopy(network).requires_grad_(requires_grad=False)
    criterion = losses.NTXentLoss(options.temperature, memory_bank_size=(options.queue, recipe.dim)).to(device)
    update = optimizer(list(network.parameters()), recipe)
    batches = endless(recipe, pictures, device, workers)

    def step() -> float:
        asked, answered = next(batches)
        follow(network, momentum, m=options.old_weight)
        query = network(asked)
        with torch.no_grad():
            key = momentum(answered)
        loss = criterion(query, key)
        loss.backward()
        update.step()
        update.zero_grad()
        return float(loss.detach())

    return step


def lightly_simclr(recipe: Recipe, pictures: Pictures, device: torch.device, workers: int) -> Step:
    """Return a step of lightly's SimCLR example."""
    torch.manual_seed(0)
    network = build(recipe).train().to(device)
    temperature = cast("Npid", recipe.options).contrast_temperature
    criterion = importlib.import_module("lightly.loss").NTXentLoss(temperature).to(device)
    update = optimizer(list(network.parameters()), recipe)
    batches = endless(recipe, pictures, device, workers)

    def step() -> float:
        first, second = next(batches)
        loss = criterion(network(first), network(second))
        loss.backward()
        update.step()
        update.zero_grad()
        return float(loss.detach())

    return step


def cpu_seconds() -> float:
    """Return the CPU time of this process and its live children (the loaders' workers; Linux only)."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def turn(step: Step, steps: int, device: torch.device) -> tuple[float, float]:
    """Return seconds and CPU seconds of some steps."""
    for _ in range(WARM):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start, busy = time.perf_counter(), cpu_seconds()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, cpu_seconds() - busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="npid-demo", help="of NPID; MoCo takes its network and settings")
    parser.add_argument("--data", type=Path, default=Path("examples/gallery"))
    parser.add_argument("--pictures", type=int, help="only the first so many")
    parser.add_argument("--queue", type=int, default=4096, help="of MoCo")
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=available_cores(), help="of torch")
    parser.add_argument("--workers", type=int, default=available_cores(), help="of lightly's DataLoader")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    npid = replace(find(options.recipe), epochs=10_000)
    moco_options = MocoV2(queue=options.queue, old_weight=0.99, symmetric=False, shuffle=False)
    moco = replace(npid, options=moco_options)
    pictures = load_pictures(options.data, npid)
    if options.pictures:
        pictures = replace(
            pictures,
            cached=pictures.cached[: options.pictures],
            prepared=pictures.prepared[: options.pictures],
            labels=pictures.labels[: options.pictures],
            ids=pictures.ids[: options.pictures],
        )
    loops = {
        "NPID, ours": ours(npid, pictures, device),
        "SimCLR, lightly": lightly_simclr(npid, pictures, device, options.workers),
        "MoCo v2, ours": ours(moco, pictures, device),
        "MoCo, lightly": lightly_moco(moco, pictures, device, options.workers),
    }
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for _ in range(options.rounds):
        for name, step in loops.items():
            turns[name].append(turn(step, options.steps, device))
    seen = options.steps * npid.batch_size
    print(
        f"{npid.name}: {npid.image_size} px, batch of {npid.batch_size}, {npid.precision}, {device.type}, "
        f"{options.threads} threads, torch {torch.__version__}, "
        f"lightly {importlib.import_module('lightly').__version__} with {options.workers} workers, "
        f"median of {options.rounds} rounds of {options.steps} steps, load {os.getloadavg()[0]:.1f}\n"
    )
    print("| loop | pictures/s (slowest to fastest) | CPU ms a picture |\n| --- | --- | --- |")
    for name, each in turns.items():
        rates = sorted(seen / seconds for seconds, _ in each)
        cost = statistics.median(1e3 * busy / seen for _, busy in each)
        print(f"| {name} | {statistics.median(rates):.0f} ({rates[0]:.0f}–{rates[-1]:.0f}) | {cost:.2f} |")
    for mine, other in (("NPID, ours", "SimCLR, lightly"), ("MoCo v2, ours", "MoCo, lightly")):
        pairs = list(zip(turns[mine], turns[other], strict=True))
        faster = statistics.median(theirs[0] / own[0] for own, theirs in pairs)
        cheaper = statistics.median(theirs[1] / own[1] for own, theirs in pairs)
        print(f"\n{mine} : {other}: {faster:.2f} times as many pictures a second, {cheaper:.2f} times a CPU second")


if __name__ == "__main__":
    main()
