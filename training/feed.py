"""The way of the pictures from where they lie to the device, in the order that the loop asks for.

    fit on the device          they lie there as bytes, and a step waits for nothing
    fit into memory only       a thread gathers the next batches and copies them over
    lie in a cache on disk     worker processes read the next batches (torch's DataLoader), pinned for a GPU

The rows are read ahead of the loop, so the iterator that yields them must have no side effects.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from multiprocessing.context import BaseContext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from index.cores import available_cores
from index.errors import TrainingError
from index.images import Pixels
from training.data import Pictures
from training.decoding import follow_parent

_DEVICE_SHARE = 0.4  # of a GPU's free memory that pictures may take; the network needs the rest
_AHEAD = 4  # batches each reader is ahead of the loop
_READERS = 8  # processes at most; they copy, and do not compute


class Feed:
    """Hands out batches of pictures on a device.

    Attributes:
        readers: worker processes that read from a cache on disk; 0 for pictures in memory.
    """

    def __init__(self, pictures: Pictures, device: torch.device) -> None:
        self._device, self._images = device, pictures.cached
        self._streams: list[Generator[Tensor, None, None]] = []
        self.readers = 0
        if not isinstance(self._images, Tensor):
            here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            self.readers = max(1, min(_READERS, available_cores() // here))
        elif _room(device) >= self._images.nbytes:
            self._images = self._images.to(device)

    def stream(self, rows: Iterator[Tensor]) -> Generator[Tensor, None, None]:
        """Yield uint8 (B, 3, S, S) on the device for each int64 (B,) of rows, in their order.

        Raises:
            TrainingError: a worker process died.
        """
        if not isinstance(self._images, Tensor):
            stream = self._from_disk(self._images, rows)
        elif self._images.device.type == self._device.type:
            stream = self._from_device(self._images, rows)
        else:
            stream = self._from_memory(self._images, rows)
        self._streams.append(stream)
        return stream

    def close(self) -> None:
        """End the streams, and with them their threads and processes."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    def _from_device(self, images: Tensor, rows: Iterator[Tensor]) -> Generator[Tensor, None, None]:
        for part in rows:
            yield images[part.to(images.device)]

    def _from_memory(self, images: Tensor, rows: Iterator[Tensor]) -> Generator[Tensor, None, None]:
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
            waiting: deque[Future[Tensor]] = deque()
            while True:
                ahead = islice(rows, _AHEAD - len(waiting))
                waiting.extend(pool.submit(_gather, images, part, pin=self._pin) for part in ahead)
                if not waiting:
                    return
                yield waiting.popleft().result().to(self._device, non_blocking=True)

    def _from_disk(self, images: Pixels, rows: Iterator[Tensor]) -> Generator[Tensor, None, None]:
        path = str(getattr(images, "filename", ""))
        loader = DataLoader(
            _Cached(path, images.shape),
            batch_size=None,  # the rows come as whole batches
            sampler=(part.numpy() for part in rows),
            num_workers=self.readers,
            prefetch_factor=_AHEAD,
            pin_memory=self._pin,
            multiprocessing_context=_server(),
            worker_init_fn=follow_parent,  # Ctrl-C is the loop's, which ends its step first
        )
        batches = iter(loader)
        try:
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except (RuntimeError, EOFError, OSError) as error:  # what a lost process looks like depends on when
                    told = str(error).strip().splitlines() or ["one that ended"]
                    raise TrainingError(
                        f"expected the {self.readers} processes that read {path} to go on, got: {told[-1]}; give "
                        "the machine (a container: its /dev/shm) more memory; the same command goes on"
                    ) from error
                yield batch.to(self._device, non_blocking=True)
        finally:
            del batches  # ends the processes

    @property
    def _pin(self) -> bool:
        return self._device.type == "cuda"


class _Cached(Dataset[Tensor]):
    """A file of pictures, opened by each process for itself; an item is a batch."""

    def __init__(self, path: str, shape: tuple[int, ...]) -> None:
        self._path, self._shape = path, shape
        self._file = -1

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        if self._file < 0:
            self._file = os.open(self._path, os.O_RDONLY)
        batch = np.empty((len(rows), *self._shape[1:]), np.uint8)
        size = batch[:1].nbytes
        for place, row in enumerate(rows.tolist()):
            if os.preadv(self._file, [batch[place].data], row * size) != size:
                raise OSError(f"{self._path} ends before picture {row}")
        return torch.from_numpy(batch)


def _gather(images: Tensor, rows: Tensor, *, pin: bool) -> Tensor:
    batch = images.index_select(0, rows)
    return batch.pin_memory() if pin else batch


def _room(device: torch.device) -> float:
    """Return the bytes that pictures may take on a device; on the CPU they are already there."""
    if device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    return _DEVICE_SHARE * free


def _server() -> BaseContext:
    """Return how readers are started: by a server that has imported this file and done nothing else.

    A fork of a process with threads or a GPU may hang, that of a server does not, and torch is imported once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
