"""The training loop: the same for every method, and the same after a crash.

Nothing random has state. The order of an epoch, the views and the noise of a step are functions of the recipe's
seed and the step's number, so a run that resumes at step s computes what the run that never stopped computes:
to the bit on one CPU process.
"""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from index.errors import TrainingError
from training import checkpoints, collapse, metrics
from training.backbone import build
from training.data import Pictures
from training.evaluation.knn import Evaluation, Scores
from training.methods import Batch, Method, create
from training.recipes import Recipe
from training.schedules import learning_rate

SAVE_SECONDS = 60.0  # a killed run loses at most this much work
_TELL_SECONDS = 30.0  # within a long epoch, a sign of life
_ORDER, _STEP, _WEIGHTS = range(3)  # streams of the seed


def report(line: str) -> None:
    """Print a line of progress on standard error."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - the command line's only way out during training


@dataclass
class State:
    """What changes during a run, and is checkpointed.

    Attributes:
        step: steps done.
        sums: of the current epoch's metrics.
        best: best kNN score so far.
        seconds: time spent in steps, over all sessions.
    """

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: float = -1.0
    seconds: float = 0.0


class Training:
    """A run: recipe, pictures and measurement in, a folder with checkpoints and metrics out."""

    def __init__(
        self, recipe: Recipe, evaluation: Evaluation, folder: Path, *, save_seconds: float = SAVE_SECONDS
    ) -> None:
        self.recipe, self.evaluation, self.folder = recipe, evaluation, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.pictures: Pictures = evaluation.train.to(self.device)
        self.steps_per_epoch = _steps_per_epoch(recipe, len(self.pictures))
        torch.manual_seed(_seed(recipe.seed, _WEIGHTS, 0))
        self.method: Method = create(build(recipe), recipe, len(self.pictures)).to(self.device)
        self.optimizer = _optimizer(self.method, recipe)
        self.state = State()
        self._save_seconds = save_seconds
        self._interrupted = False

    def run(self) -> Scores | None:
        """Train to the end, or to the next step after Ctrl-C.

        Returns:
            The final scores, or None when it was interrupted (the state is saved, and the way on was printed).

        Raises:
            CollapseError: the loss is not a number, or the embeddings became equal.
            CheckpointError: the folder holds another run, or its newest checkpoint is damaged.
        """
        self._resume()
        scores = None
        saved = told = time.monotonic()
        last = self.recipe.epochs * self.steps_per_epoch
        with self._stopping_politely():
            if self.state.step == 0:
                self._print_start()
            while self.state.step < last and not self._interrupted:
                self._step()
                ended = self.state.step % self.steps_per_epoch == 0
                if ended:
                    scores = self._end_epoch()
                    told = time.monotonic()
                elif time.monotonic() - told >= _TELL_SECONDS:
                    self._print_step()
                    told = time.monotonic()
                if (ended and self.state.step == last) or time.monotonic() - saved >= self._save_seconds:
                    self.save()
                    saved = time.monotonic()
        if self._interrupted and self.state.step < last:
            self.save()
            report(f"interrupted at step {self.state.step:,} of {last:,}; run the same command again to go on")
            return None
        return scores or self.evaluation.measure(self.method.network)

    def save(self) -> None:
        """Write a checkpoint of everything that `_resume` reads."""
        checkpoints.save(self.folder, self.state.step, self._everything())

    def _step(self) -> None:
        start = time.perf_counter()
        epoch, position = divmod(self.state.step, self.steps_per_epoch)
        seed = _seed(self.recipe.seed, _STEP, self.state.step)
        size = self.recipe.batch_size
        rows = self._order(epoch)[position * size : (position + 1) * size].to(self.device)
        self.method.train()
        views = self.method.views(self.pictures.cached[rows], Generator().manual_seed(seed))
        loss = self.method.loss(Batch(views, rows, seed))
        value = float(loss.value.detach())
        collapse.check_loss(value, self.state.step, f"the newest checkpoint in {self.folder}")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.state.step, self.steps_per_epoch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.value.backward()  # type: ignore[no-untyped-call]
        if self.recipe.clip > 0:
            nn.utils.clip_grad_norm_(self.method.parameters(), self.recipe.clip)
        self.optimizer.step()
        with torch.no_grad():
            self.method.commit(loss.pending)
        self._count("loss", value)
        self._count("spread", collapse.spread(loss.embeddings))
        self._count("uniformity", collapse.uniformity(loss.embeddings))
        for name, metric in loss.metrics.items():
            self._count(name, float(metric))
        self.state.step += 1
        self.state.seconds += time.perf_counter() - start

    def _count(self, name: str, value: float) -> None:
        self.state.sums[name] = self.state.sums.get(name, 0.0) + value

    def _order(self, epoch: int) -> Tensor:
        generator = Generator().manual_seed(_seed(self.recipe.seed, _ORDER, epoch))
        return torch.randperm(len(self.pictures), generator=generator)

    def _end_epoch(self) -> Scores | None:
        """Average the metrics, measure if it is time, log, and stop a collapsed run."""
        epoch = self.state.step // self.steps_per_epoch
        means = {name: total / self.steps_per_epoch for name, total in self.state.sums.items()}
        self.state.sums = {}
        collapse.check_spread(means["spread"], epoch)
        scores = None
        if epoch % self.recipe.knn_every == 0 or epoch == self.recipe.epochs:
            scores = self.evaluation.measure(self.method.network)
            if scores.best > self.state.best:
                self.state.best = scores.best
                checkpoints.save_best(self.folder, self._everything())
        rate = learning_rate(self.recipe, self.state.step - 1, self.steps_per_epoch)
        line: dict[str, Any] = {"epoch": epoch, "lr": rate, **means, "seconds": round(self.state.seconds, 1)}
        if scores:
            line |= {"knn_projection": scores.projection, "knn_pca": scores.pca, "knn_features": scores.features}
        metrics.append(self.folder, line)
        self._print_epoch(epoch, means, rate, scores)
        return scores

    def _print_start(self) -> None:
        report(f"measuring {self.evaluation.describe()}")
        pixels = self.evaluation.baseline()
        untrained = self.evaluation.measure(self.method.network)
        metrics.begin(self.folder, {"raw_pixels": pixels, "untrained": untrained.best})
        report(
            f"to rise above: raw pixels, PCA-{self.recipe.dim}: {pixels:.4f}; untrained network, "
            f"the better of both heads: {untrained.best:.4f}"
        )

    def _print_epoch(self, epoch: int, means: dict[str, float], rate: float, scores: Scores | None) -> None:
        done = self.state.step * self.recipe.batch_size / max(self.state.seconds, 1e-9)
        left = self.state.seconds / epoch * (self.recipe.epochs - epoch)
        text = (
            f"epoch {epoch:>4}/{self.recipe.epochs}  loss {means['loss']:7.4f}  lr {rate:.5f}  "
            f"spread {means['spread']:.2f}  "
            + (f"alignment {means['alignment']:.2f}  " if "alignment" in means else "")
            + f"{done:5.0f} pictures/s  {_duration(left)} left"
        )
        if scores:
            text += f"  kNN projection {scores.projection:.4f}  pca {scores.pca:.4f}"
        report(text)

    def _print_step(self) -> None:
        epoch, position = divmod(self.state.step, self.steps_per_epoch)
        loss = self.state.sums["loss"] / position
        rate = self.state.step * self.recipe.batch_size / max(self.state.seconds, 1e-9)
        steps = f"step {position}/{self.steps_per_epoch}"
        report(f"  epoch {epoch + 1:>4}  {steps}  loss {loss:.4f}  {rate:.0f} pictures/s")

    def _resume(self) -> None:
        newest = checkpoints.latest(self.folder)
        if newest is None:
            return
        saved = checkpoints.load(newest)
        self.method.load_state_dict(saved["method"])
        self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        self.state = State(**saved["state"])
        metrics.cut(self.folder, self.state.step // self.steps_per_epoch)
        report(f"resuming {self.folder} at step {self.state.step:,} ({newest.name})")

    def _everything(self) -> dict[str, Any]:
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "state": dict(vars(self.state)),
        }

    @contextlib.contextmanager
    def _stopping_politely(self) -> Iterator[None]:
        """Let the first Ctrl-C end the current step; a second one is immediate."""

        def stop(_number: int, _frame: object) -> None:
            self._interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            report("stopping after this step; once more to stop at once")

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _steps_per_epoch(recipe: Recipe, pictures: int) -> int:
    if pictures < recipe.batch_size:
        raise TrainingError(
            f"expected at least one batch of {recipe.batch_size} pictures, got {pictures:,}; give more pictures, "
            f"or --set batch_size={max(2, 2 ** int(math.log2(max(pictures, 2)) - 1))}"
        )
    if recipe.batch_size < 2:
        raise TrainingError(f"expected a batch_size of at least 2 (BatchNorm needs it), got {recipe.batch_size}")
    return pictures // recipe.batch_size  # the rest of an epoch is dropped; the next order drops another


def _optimizer(method: Method, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in method.parameters() if p.requires_grad]
    groups = [  # biases and BatchNorm are not decayed
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    nesterov = recipe.momentum > 0
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=nesterov)


def _seed(seed: int, stream: int, number: int) -> int:
    """Return the seed of one thing that is random; different numbers give independent streams."""
    return int(np.random.SeedSequence((seed, stream, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
