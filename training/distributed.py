"""Several processes that train one network: started by torchrun, one a GPU, or on CPUs over gloo.

Every process holds the whole method and computes its share of each step's batch. Gradients are averaged by
DistributedDataParallel; what a step learnt besides (instance memory, queue) is gathered in rank order and written
by every process alike. Without torchrun there is one process, and everything here is the identity.
"""

import contextlib
import gc
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from index.errors import TrainingError

# Gloo's processes sometimes miss each other after a restart; torchrun then starts them once more, and soon.
_CONNECT = timedelta(seconds=60)
_WORK = timedelta(hours=2)  # the others wait while the first process measures kNN


@dataclass(frozen=True)
class Processes:
    """Who takes part.

    Attributes:
        rank: of this process, from 0; the first writes the files and reports.
        world: how many there are.
        device: of this process.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0


@contextlib.contextmanager
def processes() -> Iterator[Processes]:
    """Join the other processes that torchrun started, if it did, and leave them at the end.

    Raises:
        TrainingError: more processes on this machine than GPUs.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if "LOCAL_RANK" not in os.environ:
        yield Processes(0, 1, device)
        return
    if gpus and local >= gpus:
        raise TrainingError(
            f"expected at most one process a GPU, got process {local + 1} and {gpus} GPUs; "
            f"start torchrun with --nproc-per-node {gpus}"
        )
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpus else "gloo", timeout=_CONNECT)
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # noqa: SLF001 - torch < 2.15
    set_timeout(_WORK)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
        dist.barrier()  # who leaves first takes the connections of the others along
    finally:
        gc.collect()  # a replica that still holds the group would end its threads too late, and abort the process
        dist.destroy_process_group()


def replicate(module: nn.Module) -> nn.Module:
    """Return a module as called in a step: itself, or, of several processes, a replica that averages gradients."""
    if world() == 1:
        return module
    # Buffers are gathered and written alike by every process. The option was renamed after torch 2.11.
    names = inspect.signature(DistributedDataParallel).parameters
    unsynchronised = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {unsynchronised: False}
    return DistributedDataParallel(module, **options)


def alone(replica: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return the context in which gradients are added up and not yet averaged."""
    return replica.no_sync() if isinstance(replica, DistributedDataParallel) else contextlib.nullcontext()


def world() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather(part: Tensor) -> Tensor:
    """Return the parts of all processes, in rank order: (B, …) → (world · B, …), without gradient."""
    if world() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def mean(value: Tensor) -> Tensor:
    """Return the mean over all processes of a tensor of any shape."""
    if world() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world()


def average_statistics(module: nn.Module) -> None:
    """Average BatchNorm's running statistics over all processes, which each saw other pictures."""
    if world() == 1:
        return
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(mean(buffer))


def any_of(flag: bool, device: torch.device) -> bool:  # noqa: FBT001 - the one thing it is asked
    """Return whether the flag is set in any process."""
    if world() == 1:
        return flag
    told = torch.tensor(float(flag), device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


def wait() -> None:
    """Wait until all processes are here."""
    if world() > 1:
        dist.barrier()
