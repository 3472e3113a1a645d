"""What share of a training step waits for pictures, and how fast they are decoded by threads and by processes.

    python -m benchmarks.training_input [--data PLACE --recipe NAME] [--steps 100]

Without options: the demo's recipe on the gallery. Each set is fed from memory and from a cache on disk.
"""

import argparse
import dataclasses
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from index.cores import available_cores
from index.images import Preprocess
from index.sources import open_source
from training.data import Pictures, load_pictures, preprocess_of
from training.decoding import Geometry, decode_all
from training.distributed import replicate
from training.evaluation.knn import Evaluation
from training.feed import Feed
from training.loop import Training
from training.overrides import find
from training.recipes import Recipe

_WARM = 3  # steps


def waiting(recipe: Recipe, pictures: Pictures, folder: Path, steps: int) -> tuple[float, float]:
    """Return the share of the time that steps wait for pictures, and pictures a second, after a few to warm up."""
    training = Training(recipe, Evaluation(recipe, pictures), folder)
    replica = replicate(training.method)
    with closing(Feed(pictures, training.device)) as feed:
        images = feed.stream(training.plan.stream(0))
        for step in range(_WARM + steps):
            if step == _WARM:
                training.state.waited = training.state.seconds = 0.0
            training._step(replica, images)  # noqa: SLF001 - the loop's own step, without its measurements
        if training.device.type == "cuda":
            torch.cuda.synchronize()
    return training.state.waited / training.state.seconds, steps * recipe.batch_size / training.state.seconds


def decoding(place: str, recipe: Recipe, limit: int) -> None:
    """Print how fast a source is decoded."""
    geometry = Geometry(Preprocess(recipe.cache_size, recipe.cache_size, fit=recipe.fit), preprocess_of(recipe))
    for workers in ("threads", "processes", "threads", "processes"):
        start, done, first = time.perf_counter(), 0, 0
        began = start
        source = open_source(place)
        with closing(decode_all(source, geometry, workers=workers, cores=available_cores())) as parts:
            for part in parts:
                if not done:
                    began, first = time.perf_counter(), part.seen
                done += part.seen
                if done >= limit:
                    break
        rate = (done - first) / (time.perf_counter() - began)
        print(f"decoding  {place}  {workers:<9}  {rate:7,.0f}/s after {began - start:.2f} s  ({done:,} pictures)")


def main() -> None:
    """Print a line for each way of feeding, then the decode rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="examples/gallery")
    parser.add_argument("--recipe", default="npid-demo")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--decode", type=int, default=5000, help="pictures to time the decoding on; 0 for none")
    options = parser.parse_args()
    torch.set_num_threads(available_cores())
    recipe = dataclasses.replace(find(options.recipe), epochs=10_000)
    print(f"{options.recipe} on {options.data}, {available_cores()} cores, batch {recipe.batch_size}")
    with tempfile.TemporaryDirectory() as folder:
        for name, cache in (("memory", None), ("disk", Path(folder) / "cache")):
            pictures = load_pictures(options.data, recipe, cache=cache)
            for _ in range(2):
                (share, rate) = waiting(recipe, pictures, Path(folder), options.steps)
                print(f"waiting   from {name:<7} {share:7.2%} of a step  {rate:6,.0f} pictures/s", flush=True)
    if options.decode:
        decoding(options.data, recipe, options.decode)


if __name__ == "__main__":
    main()
