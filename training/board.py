"""The same numbers as metrics.jsonl, for TensorBoard: `tensorboard --logdir RUN`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.progress import report


class Board:
    """Writes scalars by epoch into RUN/tensorboard; silent where TensorBoard is not installed."""

    def __init__(self, run: Path, epoch: int) -> None:
        """Open the folder; what an earlier session wrote after `epoch` is superseded."""
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional, and a second to import
        except ImportError:
            report("no TensorBoard files: pip install tensorboard, if you want them")
            return
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=epoch + 1)

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write the numbers of an epoch."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, epoch)
            self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()
