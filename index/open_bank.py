"""Everything that can be asked of an open bank. None of it waits for a change, or changes anything."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import BankError, ParameterError
from index.filters import Filter
from index.items import Item
from index.knn import Integers, Vectors, normalise
from index.manifest import EncoderIdentity, Manifest
from index.opening import Opened, load
from index.segments import Labels, Mask, set_batching, set_threads
from index.view import Hits, Selection, View


class OpenBank:
    """The half of a MemoryBank that reads.

    Attributes:
        path: the folder.
        manifest: the committed manifest.
    """

    manifest: Manifest

    def __init__(self, path: Path, opened: Opened, *, verify: bool, threads: int) -> None:
        self.path, self._opened, self._catalog, self._threads = path, opened, opened.catalog, threads
        self._view: View | None
        try:
            self.manifest, self._view = load(path, opened, verify=verify)
        except BaseException:
            opened.close()
            raise
        set_batching(self.manifest.encoder.dim)

    # --- what it is --------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> EncoderIdentity:
        """The encoder that made the vectors."""
        return self.manifest.encoder

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes ever used; position = class code."""
        return self._current().class_names

    @property
    def count(self) -> int:
        """Number of items."""
        return self._current().count

    @property
    def generation(self) -> int:
        """Number of changes ever committed: equal generations hold equal items."""
        return self._current().generation

    @property
    def pending(self) -> int:
        """Number of additions in the journal and in memory, which `compact` turns into a segment."""
        return len(self._current().pending.rows)

    def items(self, keys: Sequence[int] | Integers) -> list[Item | None]:
        """Look up what a search found; None where an item has gone meanwhile."""
        self._current()
        return self._catalog.items(keys)

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Look up items by id.

        Raises:
            ItemNotFoundError: for the first unknown id.
        """
        self._current()
        return self._catalog.get(ids)

    def known(self, ids: Iterable[str]) -> set[str]:
        """Return those ids that are in the bank."""
        self._current()
        return self._catalog.known(ids)

    def vectors(self, ids: Sequence[str]) -> Vectors:
        """Return the stored vectors of some items, float32 (B, D), of unit length within their precision.

        Raises:
            ItemNotFoundError: for the first unknown id.
        """
        while True:
            view = self._current()
            keys = self._catalog.keys_of(ids)
            if (keys < 0).any():
                self._catalog.get(ids)  # raises, unless it came this instant
            found = view.vectors(keys)
            if not np.isnan(found).any() or self._opened.lock is None:
                return found
            # A change was committed between the two lines above; the view follows at once.

    def page(self, label: str | None = None, limit: int = 100, after: str | None = None) -> list[Item]:
        """List items by id, those of one label if given, from behind the id `after`."""
        self._current()
        return self._catalog.page(label, limit, after)

    def label_counts(self) -> dict[str, int]:
        """Return the number of items of each label that has any."""
        self._current()
        return self._catalog.label_counts()

    def shas(self) -> set[str]:
        """Return the SHA-256 of every picture that the bank knows."""
        self._current()
        return self._catalog.shas()

    # --- search ------------------------------------------------------------------------------------------------

    def search(
        self,
        queries: NDArray[Any],
        k: int,
        *,
        exact: bool = False,
        effort: int | None = None,
        filter: Filter | None = None,  # noqa: A002 - the word of the HTTP interface
        exclude: Sequence[str | None] | None = None,
    ) -> Hits:
        """Find the nearest items of each query.

        Args:
            queries: float (B, D); any length but zero.
            k: at least 1; all items come when there are fewer.
            exact: compare with every stored vector.
            effort: inverted lists to visit; default as tuned.
            filter: what may be found; k results come whenever k items match.
            exclude: one id (or None) a query, which it must not find; unknown ids exclude nothing.

        Raises:
            VectorError, ParameterError: a query or a parameter is out of range.
        """
        view = self._current()
        queries = normalise(queries, view.dim)
        if k < 1 or (effort is not None and effort < 1):
            raise ParameterError(f"expected k and effort of at least 1, got k={k}, effort={effort}")
        if exclude is not None and len(exclude) != len(queries):
            raise ParameterError(
                f"expected one id (or None) to exclude a query, got {len(exclude)} for {len(queries)}"
            )
        excluded = None if exclude is None else self._catalog.keys_of(exclude)
        selection = None if filter is None else self._selection(filter, view)
        set_threads(self._threads)
        return view.search(queries, k, exact=exact, effort=effort, selection=selection, excluded=excluded)

    def _selection(self, wanted: Filter, view: View) -> Selection:
        codes: list[int] | None = None
        if wanted.labels is not None:
            codes = [code for code, name in enumerate(view.class_names) if name in wanted.labels]
        matching = self._catalog.matching(wanted, codes) if wanted.conditions else None

        def selection(keys: Integers, labels: Labels) -> Mask:
            mask = np.ones(len(keys), bool) if codes is None else np.isin(labels, codes)
            return mask if matching is None else mask & np.isin(keys, matching)

        return selection

    def _current(self) -> View:
        view = self._view
        if view is None:
            raise BankError(f"expected an open bank, got {self.path}, which was closed")
        return view
