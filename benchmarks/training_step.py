"""Which precision and memory format trains a recipe fastest on this machine, and what do views cost?

    python -m benchmarks.training_step [--recipe npid-demo] [--data examples/gallery] [--seconds 5]

Times whole steps (views, loss, backward, optimiser, commit) of a recipe on real pictures, for each precision and
memory format, interleaved so that a busy moment hits all of them, and the share that making views takes.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch

from training.data import load_pictures
from training.draws import Share
from training.methods import Batch, create
from training.overrides import find
from training.recipes import Recipe

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def stepper(
    recipe: Recipe, images: torch.Tensor, layout: str
) -> tuple[Callable[[], None], Callable[[], tuple[torch.Tensor, ...]]]:
    """Return two functions: one makes a whole step, one only its views."""
    torch.manual_seed(0)
    method = create(recipe, len(images)).train()
    method.network.to(memory_format=FORMATS[layout])
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-4)
    rows = torch.randperm(len(images))[: recipe.batch_size]
    share = Share.whole(len(rows))

    def views() -> tuple[torch.Tensor, ...]:
        return method.views(images[rows], share.draw(0))

    def step() -> None:
        loss = method.loss(Batch(views(), rows, share, 0))
        optimizer.zero_grad(set_to_none=True)
        loss.value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            method.commit(loss.pending)

    return step, views


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="npid-demo")
    parser.add_argument("--data", type=Path, default=Path("examples/gallery"))
    parser.add_argument("--seconds", type=float, default=5.0, help="for each of the four")
    options = parser.parse_args()
    recipe = find(options.recipe)
    pictures = load_pictures(options.data, recipe)
    images = pictures.first(len(pictures))
    cases = {
        (precision, layout): stepper(replace(recipe, precision=precision), images, layout)
        for precision in ("float32", "bfloat16")
        for layout in FORMATS
    }
    spent: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    making: list[float] = []
    for case, (step, _) in cases.items():  # the first step chooses kernels; it does not count
        del case
        step()
    while sum(map(sum, spent.values())) < options.seconds * len(cases):
        for case, (step, views) in cases.items():
            start = time.perf_counter()
            step()
            spent[case].append(time.perf_counter() - start)
            start = time.perf_counter()
            views()
            making.append(time.perf_counter() - start)
    count = recipe.batch_size * len(views())
    print(
        f"{recipe.name}, batch of {recipe.batch_size}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for (precision, layout), times in spent.items():
        median = sorted(times)[len(times) // 2]
        print(f"{precision:<10} {layout:<14} {count / median:6.0f} views/s   {median * 1e3:6.1f} ms a step")
    print(f"views alone: {sorted(making)[len(making) // 2] * 1e3:.1f} ms a step")


if __name__ == "__main__":
    main()
