"""Ctrl-C, politely: the first one ends the current step, so that a checkpoint can be written; the next ends all."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from training.progress import report

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # a terminal's Ctrl-C; torchrun and `docker stop`


class Interrupt:
    """Within its context, notes that a signal asked to stop.

    Attributes:
        asked: whether one came.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, signal.default_int_handler)
        report("stopping after this step; once more to stop at once")
