"""One line of progress for long work: done, rate, time left. Redrawn on a terminal, sparse in a log."""

import sys
import time
from typing import Self, TextIO

_TERMINAL_INTERVAL, _LOG_INTERVAL = 0.2, 10.0  # seconds between two lines


class Progress:
    """Counts work and tells how it goes, on standard error so that results can be piped.

    The rate is over this run only: what an earlier run had finished (`already`) is not credited to this one.
    """

    def __init__(self, label: str, total: int, *, already: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.total, self.done, self._already = label, total, already, already
        self._stream = stream or sys.stderr
        self._start = time.monotonic()
        self._shown = -float("inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._show(final=True)

    def advance(self, amount: int) -> None:
        """Count `amount` more as done."""
        self.done += amount
        terminal = self._stream.isatty()
        if time.monotonic() - self._shown >= (_TERMINAL_INTERVAL if terminal else _LOG_INTERVAL):
            self._show()

    def line(self) -> str:
        """Return what is shown, without the terminal's control characters."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = (self.done - self._already) / elapsed
        share = f"{self.done:,}/{self.total:,}"
        left = (
            f"{(self.total - self.done) / rate:.0f} s left"
            if rate and self.done < self.total
            else f"{elapsed:.1f} s"
        )
        return f"{self.label}  {share}  {rate:,.0f}/s  {left}"

    def _show(self, *, final: bool = False) -> None:
        self._shown = time.monotonic()
        if self._stream.isatty():
            self._stream.write("\r\x1b[2K" + self.line() + ("\n" if final else ""))
        else:
            self._stream.write(self.line() + "\n")
        self._stream.flush()
