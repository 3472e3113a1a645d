"""Vectors in and out of HTTP: lists of numbers, .npy files, raw little-endian float32.

A .npy header is read by NumPy's own parser, but the array is a view of the body that came: a header that
promises terabytes allocates nothing, and pickled objects are never touched.
"""

from collections.abc import Sequence
from io import BytesIO

import numpy as np

from index import knn
from index.errors import VectorError
from index.knn import Vectors
from service.problems import RequestError

NPY = "application/x-npy"
RAW = "application/octet-stream"


def from_lists(rows: Sequence[Sequence[float]], dim: int) -> Vectors:
    """Return rows of unit length, float32 (B, D).

    Raises:
        VectorError: a row of another dimension, not finite as float32, or of length zero.
    """
    for position, row in enumerate(rows):
        if len(row) != dim:
            raise VectorError(f"expected vectors of {dim} numbers, got {len(row)} at position {position}")
    return knn.normalise(np.array(rows, dtype=np.float64).reshape(len(rows), dim), dim)


def from_npy(body: bytes, dim: int) -> Vectors:
    """Return the rows of a .npy file, (D,) or (B, D), as unit rows, float32 (B, D).

    Raises:
        RequestError: `malformed_npy`, for anything but a whole .npy file.
        VectorError: another shape or type of numbers, not finite as float32, or of length zero.
    """
    file = BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read_header[version](file)
    except Exception as error:  # whatever NumPy's header parser passes on from its tokeniser
        raise RequestError("malformed_npy", "expected a .npy file of version 1 or 2, got something else") from error
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise VectorError(f"expected float16, float32 or float64 numbers, got {dtype.name[:32]}")
    if len(shape) not in (1, 2) or shape[-1] != dim:
        raise VectorError(f"expected an array of shape ({dim},) or (B, {dim}), got {str(shape)[:64]}")
    data = memoryview(body)[file.tell() :]
    rows = shape[0] if len(shape) == 2 else 1
    if rows < 1:
        raise VectorError("expected one or more vectors, got none")
    if rows * dim * dtype.itemsize != len(data):
        raise RequestError(
            "malformed_npy", f"expected {rows} × {dim} numbers after the header, got {len(data)} bytes"
        )
    flat = np.frombuffer(data, dtype)
    found = flat.reshape(dim, rows).T if fortran else flat.reshape(rows, dim)
    return knn.normalise(np.ascontiguousarray(found), dim)  # lengths are summed in one order, whatever the layout


def to_npy(vectors: Vectors) -> bytes:
    """Return a .npy file of float32 (B, D)."""
    file = BytesIO()
    np.save(file, vectors.astype("<f4", copy=False), allow_pickle=False)
    return file.getvalue()


def to_raw(vectors: Vectors) -> bytes:
    """Return the rows one after the other, little-endian float32."""
    return vectors.astype("<f4", copy=False).tobytes()
