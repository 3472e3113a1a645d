"""The training loop: the same for every method, on one process or many, and the same after a crash.

Nothing random has state. The order of an epoch, the views, the noise and the dropout of a step are functions of
the recipe's seed and the step's number, so a run that resumes at step s computes what the run that never stopped
computes: to the bit on one CPU process. A picture's place in the step's batch decides its view, whichever process
or micro-batch computes it.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from index.errors import CheckpointError
from training import checkpoints, collapse, distributed, metrics
from training.batchnorm import arrange_batchnorm
from training.board import Board
from training.distributed import Processes
from training.draws import Share
from training.evaluation.knn import Evaluation, Scores
from training.feed import Feed
from training.interrupts import Interrupt
from training.methods import Batch, Loss, Method, create
from training.plan import Plan, Stream
from training.progress import epoch_line, report, step_line
from training.recipes import Recipe
from training.schedules import learning_rate
from training.update import Update

SAVE_SECONDS = 60.0  # a killed run loses at most this much work
_TELL_SECONDS = 30.0  # within a long epoch, a sign of life
_LOOK_STEPS = 10  # several processes agree on saving and stopping, and a GPU is waited for, only so often


@dataclass
class State:
    """What changes during a run, and is checkpointed.

    Attributes:
        step: steps done.
        sums: of the current epoch's metrics.
        best: best kNN score so far.
        seconds: time spent in steps, over all sessions.
        waited: how much of that was spent waiting for pictures.
    """

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: float = -1.0
    seconds: float = 0.0
    waited: float = 0.0


class Training:
    """A run: recipe, pictures and measurement in, a folder with checkpoints and metrics out.

    Attributes:
        scores: the last measurement; of several processes, only the first measures.
    """

    def __init__(
        self,
        recipe: Recipe,
        evaluation: Evaluation,
        folder: Path,
        *,
        processes: Processes | None = None,
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.processes = processes or Processes(0, 1, device)
        self.recipe, self.evaluation, self.folder = recipe, evaluation, folder
        self.device = self.processes.device
        self.plan = Plan(recipe, len(evaluation.train), self.processes)
        torch.manual_seed(self.plan.seed(Stream.WEIGHTS))
        self.method: Method = create(recipe, len(evaluation.train))
        arrange_batchnorm(self.method, recipe, self.device)
        self.method.to(self.device)
        self.update = Update(list(self.method.parameters()), recipe, self.device)
        self.state = State()
        self.scores: Scores | None = None
        self._sums: dict[str, Tensor] = {}
        self._save_seconds = save_seconds
        self._interrupt = Interrupt()
        self._stopping = False

    def run(self) -> bool:
        """Train to the end, or to the next step after Ctrl-C.

        Returns:
            Whether the end was reached; if not, the state is saved and the way on was printed.

        Raises:
            CollapseError: the loss is not a number, or the embeddings became equal.
            CheckpointError: the folder holds another run, or its newest checkpoint is damaged.
        """
        self._resume()
        replica = distributed.replicate(self.method)
        feed = Feed(self.evaluation.train, self.device)
        with contextlib.closing(feed), self._interrupt, self._board() as board:
            if self.state.step == 0:
                self._print_start()
            images = feed.stream(self.plan.stream(self.state.step))
            saved = told = time.monotonic()
            while self.state.step < self.plan.steps and not self._stopping:
                self._step(replica, images)
                ended = self.state.step % self.plan.steps_per_epoch == 0
                if ended:
                    self._end_epoch(board)
                    told = time.monotonic()
                elif time.monotonic() - told >= _TELL_SECONDS:
                    self._print_step()
                    told = time.monotonic()
                if self._agree_to_save(due=time.monotonic() - saved >= self._save_seconds):
                    self.save()
                    saved = time.monotonic()
        if self.state.step < self.plan.steps:
            self.save()
            done = f"step {self.state.step:,} of {self.plan.steps:,}"
            report(f"interrupted at {done}; run the same command again to go on")
            return False
        if self.scores is None and self.processes.first:
            self.scores = self._measure()
        return True

    def save(self) -> None:
        """Write a checkpoint of everything that `_resume` reads."""
        self._settle()
        distributed.average_statistics(self.method)
        if self.processes.first:
            checkpoints.save(self.folder, self.state.step, self._everything())
        distributed.wait()

    def _step(self, replica: nn.Module, images: Iterator[Tensor]) -> None:
        """Compute the step's micro-batches, move the weights, then let the method write what it learnt."""
        start = time.perf_counter()
        self.method.train()
        torch.manual_seed(self.plan.seed_of_process(self.state.step))
        losses = []
        for number, share in enumerate(self.plan.shares):
            waiting = time.perf_counter()
            pixels = next(images)
            self.state.waited += time.perf_counter() - waiting
            final = number == len(self.plan.shares) - 1
            together = contextlib.nullcontext() if final else distributed.alone(replica)
            with together:  # the processes exchange gradients once, after the last micro-batch
                loss: Loss = replica(self._batch(share, pixels))
                self._watch(loss)
                self.update.backward(loss.value)
            losses.append(loss)
        if self.update.step(learning_rate(self.recipe, self.state.step, self.plan.steps_per_epoch)):
            with torch.no_grad():
                self.method.commit(_join(losses))
        self.state.step += 1
        if self.device.type == "cuda" and self.state.step % _LOOK_STEPS == 0:
            self._settle()
        self.state.seconds += time.perf_counter() - start

    def _batch(self, share: Share, pixels: Tensor) -> Batch:
        """Return a share of the current step's batch."""
        step = self.state.step
        with torch.no_grad():
            draw = share.draw(self.plan.seed(Stream.VIEWS, step), self.device)
            views = self.method.views(pixels, draw)
        rows = self.plan.rows(step, share).to(self.device)
        return Batch(views, rows, share, self.plan.seed(Stream.NOISE, step))

    def _watch(self, loss: Loss) -> None:
        """Count the numbers of a micro-batch; on a CPU, where looking is free, look at once."""
        if self.device.type == "cpu":
            collapse.check_loss(float(loss.value.detach()), self.state.step, self.folder)
        self._count("loss", loss.value.detach())
        self._count("spread", collapse.spread(loss.embeddings))
        self._count("uniformity", collapse.uniformity(loss.embeddings))
        for name, metric in loss.metrics.items():
            self._count(name, metric.detach())

    def _count(self, name: str, value: Tensor | float) -> None:
        value = torch.as_tensor(value, dtype=torch.float64, device=self.device) / len(self.plan.shares)
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _settle(self) -> None:
        """Bring the numbers from the device, and raise if the loss is none."""
        if self._sums:
            values = distributed.mean(torch.stack(list(self._sums.values()))).tolist()
            self.state.sums = dict(zip(self._sums, values, strict=True))
            collapse.check_loss(self.state.sums["loss"], self.state.step - 1, self.folder)

    def _end_epoch(self, board: Board | None) -> None:
        """Average the metrics, measure if it is time, log, and stop a collapsed run."""
        epoch = self.state.step // self.plan.steps_per_epoch
        self._settle()
        distributed.average_statistics(self.method)
        means = {name: total / self.plan.steps_per_epoch for name, total in self.state.sums.items()}
        self.state.sums, self._sums = {}, {}
        collapse.check_spread(means["spread"], epoch)
        if not self.processes.first:
            distributed.wait()
            return
        scores = None
        if epoch % self.recipe.knn_every == 0 or epoch == self.recipe.epochs:
            self.scores = scores = self._measure()
            if scores.best > self.state.best:
                self.state.best = scores.best
                checkpoints.save_best(self.folder, self._everything())
        means["wait"] = self.state.waited / max(self.state.seconds, 1e-9)
        means["lr"] = learning_rate(self.recipe, self.state.step - 1, self.plan.steps_per_epoch)
        line = means | (scores.named() if scores else {})
        metrics.append(self.folder, {"epoch": epoch, **line, "seconds": round(self.state.seconds, 1)})
        if board:
            board.write(epoch, line)
        report(epoch_line(epoch, self.recipe.epochs, means, rate=self._rate(), left=self._left(), scores=scores))
        distributed.wait()

    def _agree_to_save(self, *, due: bool) -> bool:
        """Decide, together with all processes, whether to save now, and whether to stop."""
        if self.state.step == self.plan.steps:
            return True
        if distributed.world() > 1:
            if self.state.step % _LOOK_STEPS:
                return False
            due = distributed.any_of(due, self.device)
            self._stopping = distributed.any_of(self._interrupt.asked, self.device)
        else:
            self._stopping = self._interrupt.asked
        return due and not self._stopping

    def _measure(self) -> Scores:
        return self.evaluation.measure(self.method.network)

    def _print_start(self) -> None:
        if not self.processes.first:
            distributed.wait()
            return
        report(f"measuring {self.evaluation.describe()}")
        pixels = self.evaluation.baseline()
        untrained = self._measure()
        metrics.begin(self.folder, {"raw_pixels": pixels, "untrained": untrained.best})
        report(
            f"to rise above: raw pixels, PCA-{self.recipe.dim}: {pixels:.4f}; untrained network, "
            f"the better of both heads: {untrained.best:.4f}"
        )
        if self.method.note:
            report(f"note: {self.method.note}")
        distributed.wait()

    def _print_step(self) -> None:
        epoch, position = divmod(self.state.step, self.plan.steps_per_epoch)
        loss = float(self._sums["loss"]) / position  # this process's own: the others may not be telling now
        report(
            step_line(
                epoch + 1, position, self.plan.steps_per_epoch, loss=loss, rate=self._rate(), left=self._left()
            )
        )

    def _rate(self) -> float:
        return self.state.step * self.recipe.batch_size / max(self.state.seconds, 1e-9)

    def _left(self) -> float:
        return self.state.seconds / max(self.state.step, 1) * (self.plan.steps - self.state.step)

    def _resume(self) -> None:
        newest = checkpoints.latest(self.folder)
        if newest is None:
            return
        saved = checkpoints.load(newest)
        if saved["name"] != self.recipe.method:
            raise CheckpointError(
                f"expected a checkpoint of {self.recipe.method} in {self.folder}, got one of {saved['name']}; "
                "give another --out"
            )
        self.method.load_state_dict(saved["method"])
        self.update.load_state_dict(saved["update"])
        self.state = State(**saved["state"])
        self._sums = {
            name: torch.tensor(total, dtype=torch.float64, device=self.device)
            for name, total in self.state.sums.items()
        }
        if self.processes.first:
            metrics.cut(self.folder, self.state.step // self.plan.steps_per_epoch)
        report(f"resuming {self.folder} at step {self.state.step:,} ({newest.name})")

    def _everything(self) -> dict[str, Any]:
        return {
            "name": self.recipe.method,
            "method": self.method.state_dict(),
            "update": self.update.state_dict(),
            "state": dict(vars(self.state)),
        }

    @contextlib.contextmanager
    def _board(self) -> Iterator[Board | None]:
        if not self.processes.first:
            yield None
            return
        with contextlib.closing(Board(self.folder, self.state.step // self.plan.steps_per_epoch)) as board:
            yield board


def _join(losses: list[Loss]) -> dict[str, Tensor]:
    """Return what a step left pending: over its micro-batches, then over all processes, in order."""
    names = losses[0].pending
    return {name: distributed.gather(torch.cat([loss.pending[name] for loss in losses])) for name in names}
