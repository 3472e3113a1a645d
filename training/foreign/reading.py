"""Read a checkpoint that somebody else wrote, without running any code that is in it.

A `.pth` file is a pickle, and a pickle is a program: it names functions and calls them. PyTorch's own
`weights_only=True` runs only those that build tensors, and refuses a file that names anything else. Many public
checkpoints do: lemniscate stores its memory bank as an object of a class of its own, VISSL its configuration. For
these, a second reader resolves the names of what builds tensors, and turns every other name into a placeholder, an
object that can be made, filled and thrown away, and does nothing.
"""

import pickle
import tarfile
import types
import warnings
import zipfile
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor, _rebuild_tensor_v2

from index.errors import CheckpointError

# All that a foreign pickle may name: what builds tensors from bytes. Storages are PyTorch's own affair (it resolves
# every name with "Storage" itself). Nothing here calls back into an argument.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", str(t)[6:]): t for t in vars(torch).values() if isinstance(t, torch.dtype)},
}


class Placeholder:
    """Stands for an object of a class that is not looked up: it takes whatever is put into it and does nothing.

    Attributes:
        state: what the file wanted to set on the object; a module's tensors can be found in it.
    """

    dump_patches = False  # PyTorch asks every stored module class whether to write patch files

    def __init__(self, *arguments: object, **named: object) -> None:
        del arguments, named
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """Take an entry as a subclass of dict would."""

    def append(self, value: object) -> None:
        """Take an element as a subclass of list would."""

    def extend(self, values: object) -> None:
        """Take elements as a subclass of list would."""

    def add(self, value: object) -> None:
        """Take an element as a subclass of set would."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - a class or a function
        """Return what builds tensors, and for every other name a class that does nothing."""
        allowed = _ALLOWED.get((module, name))
        if allowed is None:
            return type(name.rpartition(".")[2], (Placeholder,), {})
        if isinstance(allowed, types.FunctionType):  # a copy: a pickle may set attributes of what it names
            return partial(allowed)
        return allowed


def _load(file: Any, **options: Any) -> Any:  # noqa: ANN401 - pickle's own signature
    return _Unpickler(file, **options).load()


def read(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return what a checkpoint holds, tensors on the CPU, objects of foreign classes as placeholders.

    Raises:
        CheckpointError: no such file, or none that `torch.save` wrote whole.
    """
    if not path.is_file():
        raise CheckpointError(f"expected a checkpoint at {path}, got no such file")
    _refuse_other_formats(path)
    with suppress(Exception):  # it names more than tensors, has Python 2's strings, or is damaged
        return torch.load(path, map_location="cpu", weights_only=True)
    reader = types.ModuleType("restricted_pickle")
    vars(reader).update(Unpickler=_Unpickler, load=_load)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch misses the source code of the placeholders
            # latin1 reads the byte strings of Python 2's pickles, which old files have.
            return torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False, encoding="latin1")
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise CheckpointError(
            f"expected a file that torch.save wrote at {path}, got one that cannot be read ({first_line}); "
            "check that the download is complete"
        ) from error


def _refuse_other_formats(path: Path) -> None:
    """Refuse what PyTorch would read by another, less careful way than its unpickler."""
    kind = None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            kind = "a TorchScript program" if any(n.endswith("/constants.pkl") for n in file.namelist()) else None
    elif tarfile.is_tarfile(path):
        kind = "a tar archive, PyTorch's format before 0.1.10"
    if kind:
        raise CheckpointError(f"expected weights in {path}, got {kind}; save its state_dict with torch.save")
