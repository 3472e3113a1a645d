"""What does the exact softmax over all instances cost, beside the estimate that stands in for it?

    python -m benchmarks.training_softmax [--pictures 1281167] [--batch 256] [--rounds 5] [--device cpu]

One loss and its gradient by the embeddings, NPID at ImageNet's size, for each of

    exact            training.methods.npid.instance_softmax
    exact, bfloat16  the same with half=True
    NCE              4,096 noise samples a picture, as training.methods.npid computes it (options.loss=nce)
    NCE, lemniscate  the same as github.com/zhirongw/lemniscate.pytorch does: rows gathered forward and backward
    InfoNCE          4,096 noise samples for the whole batch (options.loss=infonce)
    naive            all (B, N) logits, F.cross_entropy, autograd

Each contender has a process of its own, which waits while the others run; they take turns, so that a busy moment
hits all of them. Memory is what the process's peak grows by during its steps, the instance memory not counted.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
import torch.nn.functional as F
from torch import Tensor

from training.methods.npid import (
    estimate_partition,
    instance_softmax,
    noise_contrast,
    shared_contrast,
)

TEMPERATURE = 0.07
NEGATIVES = 4096
Step = Callable[[Tensor, Tensor, Tensor], Tensor]


def exact(embeddings: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
    return instance_softmax(embeddings, memory, rows, TEMPERATURE)


def exact_half(embeddings: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
    return instance_softmax(embeddings, memory, rows, TEMPERATURE, half=True)


def infonce(embeddings: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
    shared = torch.randint(len(memory), (NEGATIVES,), device=memory.device)
    return shared_contrast(embeddings, memory, rows, shared, TEMPERATURE)


def naive(embeddings: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
    return F.cross_entropy(embeddings @ memory.T / TEMPERATURE, rows)


def nce(embeddings: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
    noise = torch.randint(len(memory), (len(rows), NEGATIVES), device=memory.device)
    samples = torch.cat([rows[:, None], noise], dim=1)  # (B, 1 + m)
    logits = torch.einsum("bd,bmd->bm", embeddings, memory[samples]) / TEMPERATURE
    return noise_contrast(logits, estimate_partition(logits.detach(), len(memory)), len(memory))


class _Gathered(torch.autograd.Function):
    """Similarities exp(v · m / τ) / Z of gathered rows; the rows are gathered anew for the gradient."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, memory: Tensor, samples: Tensor) -> Tensor:  # noqa: ANN401
        weights = memory.index_select(0, samples.flatten()).view(*samples.shape, -1)  # (B, 1 + m, D)
        out = torch.bmm(weights, embeddings[:, :, None]).div_(TEMPERATURE).exp_()[..., 0]
        out /= out.mean() * len(memory)
        ctx.save_for_backward(memory, samples, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        memory, samples, out = ctx.saved_tensors
        weights = memory.index_select(0, samples.flatten()).view(*samples.shape, -1)
        slope = (gradients[0] * out / TEMPERATURE)[:, None]
        return torch.bmm(slope, weights)[:, 0], None, None


def nce_lemniscate(embeddings: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
    noise = torch.randint(len(memory), (len(rows), NEGATIVES), device=memory.device)
    scores = cast("Tensor", _Gathered.apply(embeddings, memory, torch.cat([rows[:, None], noise], dim=1)))
    floor = NEGATIVES / len(memory)
    data = (scores[:, 0] / (scores[:, 0] + floor + 1e-7)).log()
    others = (floor / (scores[:, 1:] + floor + 1e-7)).log()
    return -(data.sum() + others.sum()) / len(rows)


CONTENDERS: dict[str, Step] = {
    "exact": exact,
    "exact, bfloat16": exact_half,
    "NCE": nce,
    "NCE, lemniscate": nce_lemniscate,
    "InfoNCE": infonce,
    "naive": naive,
}


class Contender:
    """A process that makes a step whenever it is asked to."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        sizes = [str(value) for value in (options.pictures, options.dim, options.batch)]
        command = [sys.executable, "-m", "benchmarks.training_softmax", "--serve", name, options.device, *sizes]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.found = self._read()

    def step(self) -> dict[str, float]:
        """Return seconds, CPU seconds, and the peak memory so far in bytes."""
        pipe = cast("IO[str]", self._process.stdin)
        pipe.write("step\n")
        pipe.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        cast("IO[str]", self._process.stdin).close()
        self._process.wait()

    def _read(self) -> dict[str, float]:
        line = cast("IO[str]", self._process.stdout).readline()
        if not line:
            raise SystemExit(f"the process of {self.name!r} ended")
        return dict(json.loads(line))


def serve(name: str, device: str, pictures: int, dim: int, batch: int) -> None:
    """Answer each line of the standard input with the cost of a step."""
    torch.manual_seed(0)
    memory = torch.randn(pictures, dim, device=device)
    memory.div_(memory.norm(dim=1, keepdim=True))  # in place: the peak of making it would hide that of using it
    rows = torch.randint(pictures, (batch,)).to(device)
    # Embeddings of a network that has begun to learn: the own instance is nearer than all others.
    noise = F.normalize(torch.randn(batch, dim), dim=1).to(device)
    embeddings = F.normalize(memory[rows] + 1.5 * noise, dim=1).requires_grad_()
    step = CONTENDERS[name]
    step(embeddings[:2], memory[:2], rows[:2] % 2).backward()  # type: ignore[no-untyped-call] # loads the kernels

    def once() -> tuple[Tensor, Tensor]:
        value = step(embeddings, memory, rows)
        return value.detach(), torch.autograd.grad(value, embeddings)[0]

    before = peak(device)
    value, gradient = once()  # chooses kernels; its time does not count
    print(json.dumps({"loss": float(value), "gradient": float(gradient.norm())}), flush=True)
    for _ in sys.stdin:
        start, busy = time.perf_counter(), time.process_time()
        once()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy
        print(json.dumps({"seconds": seconds, "cpu": cpu, "memory": peak(device) - before}), flush=True)


def peak(device: str) -> float:
    """Return the most memory this process ever held, in bytes."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    unit = 1 if platform.system() == "Darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def available() -> float:
    """Return the memory that is free for new processes, in bytes; infinite where that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_281_167, help="N")
    parser.add_argument("--dim", type=int, default=128, help="D")
    parser.add_argument("--batch", type=int, default=256, help="B")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--serve", nargs=5, metavar=("NAME", "DEVICE", "N", "D", "B"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        name, device, *sizes = options.serve
        serve(name, device, *(int(size) for size in sizes))
        return
    needed = len(options.only) * options.pictures * options.dim * 4 * 1.5 + options.pictures * options.batch * 12
    if needed > available():
        parser.error(f"expected {needed / 2**30:.0f} GiB of free memory, got {available() / 2**30:.0f}; use --only")
    contenders = [Contender(name, options) for name in options.only]
    rounds: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in contenders}
    for _ in range(options.rounds):
        for contender in contenders:
            rounds[contender.name].append(contender.step())
    for contender in contenders:
        contender.close()
    print(
        f"N {options.pictures:,}, D {options.dim}, B {options.batch}, {options.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"median of {options.rounds} rounds (fastest to slowest), load {os.getloadavg()[0]:.1f}\n"
    )
    print(
        "| loss | seconds | CPU seconds | peak memory, MB | value | norm of the gradient |\n" + "| --- " * 6 + "|"
    )
    for contender in contenders:
        steps = rounds[contender.name]
        seconds = sorted(step["seconds"] for step in steps)
        cells = [
            contender.name,
            f"{statistics.median(seconds):.4g} ({seconds[0]:.4g}–{seconds[-1]:.4g})",
            f"{statistics.median(step['cpu'] for step in steps):.4g}",
            f"{max(step['memory'] for step in steps) / 1e6:,.0f}",
            f"{contender.found['loss']:.4f}",
            f"{contender.found['gradient']:.5f}",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
