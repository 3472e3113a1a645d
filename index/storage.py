"""The folder of a bank: who may write it, what lies in it for nothing, and the disk's failures in our words."""

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from index.errors import BankBusyError, BankReadOnlyError, StorageFullError

LOCK = "writer.lock"
MANIFEST = "manifest.json"
SEGMENTS = "segments"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class WriterLock:
    """Held by the one process that opened the bank for writing; the kernel lets go of it however that ends."""

    def __init__(self, folder: Path) -> None:
        with disk_errors(folder):
            self._descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace") or "unknown"
            os.close(self._descriptor)
            raise BankBusyError(
                f"expected to be the only writer of {folder}, but process {holder} has it open for writing; "
                "stop that one, or open the bank read-only"
            ) from error
        except OSError:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Let the next writer in."""
        os.close(self._descriptor)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Say what a failing disk means for the bank."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(
                f"expected room for the change in {folder}, got a full disk; free some and repeat"
            ) from error
        if error.errno in _READ_ONLY:
            raise BankReadOnlyError(
                f"expected a folder that can be written, got {folder}: {error.strerror}"
            ) from error
        raise


def sweep(folder: Path, keep: Collection[str]) -> None:
    """Remove what an interrupted writer left: unreferenced segments and temporary manifests.

    Only the writer may call this. Readers that still map a removed segment keep their memory.
    """
    for segment in (folder / SEGMENTS).iterdir():
        if segment.name not in keep:
            shutil.rmtree(segment, ignore_errors=True)
    for temporary in folder.glob(f".{MANIFEST}.*"):
        temporary.unlink(missing_ok=True)
