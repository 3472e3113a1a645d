"""Verification: is everything in the bank what was written, and does it agree with itself?"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from index.catalog import CATALOG, Catalog
from index.errors import BankError
from index.files import sha256_file
from index.manifest import Manifest
from index.storage import MANIFEST, SEGMENTS
from index.view import Layer, View

_CHUNK = 65_536  # rows a step
_UNIT = {"float32": 1e-5, "float16": 1e-3}  # how far a stored vector's length may be from 1


def problems(folder: Path, catalog: Catalog, view: View, manifest: Manifest) -> list[str]:
    """Check a bank that nobody changes meanwhile; return what is wrong, one sentence each."""
    found: list[str] = []
    checks = (  # generators: each begins when it is asked, so that one that fails keeps none from running
        _structure(catalog),
        _manifest(folder, manifest),
        _checksums(folder, manifest),
        _agreement(catalog, view),
        _lengths(view, manifest),
    )
    for check in checks:
        try:
            found += check
        except BankError as error:
            found.append(str(error))
    return found


def _structure(catalog: Catalog) -> Iterator[str]:
    yield from catalog.problems()


def _manifest(folder: Path, manifest: Manifest) -> Iterator[str]:
    path = folder / MANIFEST
    if not path.is_file():
        yield f"{MANIFEST} is missing; opening the bank for writing restores it"
    elif Manifest.from_json(path.read_bytes(), path) != manifest:
        yield f"{MANIFEST} is not that of the last commit; opening the bank for writing puts it right"


def _checksums(folder: Path, manifest: Manifest) -> Iterator[str]:
    for entry in manifest.segments:
        for name, digest in entry.files.items():
            path = folder / SEGMENTS / entry.name / name
            if not path.is_file():
                yield f"{path} is missing"
            elif sha256_file(path) != digest:
                yield f"{path} does not match its checksum"


def _agreement(catalog: Catalog, view: View) -> Iterator[str]:
    expected = catalog.labels_by_key()
    keys = np.concatenate([layer.rows.keys[layer.living()] for layer in view.layers])
    labels = np.concatenate([layer.rows.labels[layer.living()] for layer in view.layers])
    if len(np.unique(keys)) != len(keys):
        yield f"{len(keys) - len(np.unique(keys))} items have more than one vector"
    stored = dict(zip(keys.tolist(), labels.tolist(), strict=True))
    if missing := expected.keys() - stored.keys():
        yield f"{len(missing)} items of {CATALOG} have no vector, first key {min(missing)}"
    if orphans := stored.keys() - expected.keys():
        yield f"{len(orphans)} vectors belong to no item of {CATALOG}, first key {min(orphans)}"
    wrong = [key for key, label in stored.items() if key in expected and expected[key] != label]
    if wrong:
        yield f"{len(wrong)} items have another label in their segment than in {CATALOG}, first key {min(wrong)}"
    if max(expected.values(), default=-1) >= len(view.class_names):
        yield f"{CATALOG} uses a class that has no name"


def _lengths(view: View, manifest: Manifest) -> Iterator[str]:
    tolerance = _UNIT["float16" if any(s.precision == "float16" for s in manifest.segments) else manifest.precision]
    for layer in view.layers:
        wrong = sum(_wrong(layer, tolerance))
        if wrong:
            yield f"{wrong} of {len(layer.rows)} stored vectors are not finite or not of unit length"


def _wrong(layer: Layer, tolerance: float) -> Iterator[int]:
    for first in range(0, len(layer.rows), _CHUNK):
        rows = np.arange(first, min(first + _CHUNK, len(layer.rows)))
        lengths = np.linalg.norm(layer.rows.vectors(rows), axis=1)
        yield int(np.count_nonzero(~(np.abs(lengths - 1) <= tolerance)))
