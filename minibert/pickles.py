"""What a pickle of tensors may ask for: a dry run, before torch.load does what it is told.

`torch.load(weights_only=True)` runs nothing that does harm, but a few bytes can make it take any
amount of memory, or give what was in the memory before. Here the pickle is read as torch would,
with a number in place of each tensor. Known are the names and opcodes that torch.save writes for
tensors, since its first release; whatever else is in a pickle is refused.
Follows pytorch/pytorch@v2.13.0 torch/serialization.py and torch/_weights_only_unpickler.py.
Read next: weights.py.
"""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minibert.glossary import shown

LARGEST = 1 << 19  # bytes of names and shapes: some 4000 tensors, or seconds of a hostile file

# Of protocol 2: values; lists, tuples and dicts; the memo; what asks for names and storages.
_OPCODES = b"\x80.NJKMGXU\x8a\x88\x89" + b"])}(t\x85\x86\x87aesu" + b"qrhj" + b"cRbQ"


def check_pickle(path: Path) -> None:
    """Refuse what torch.load would take more memory for than the file has bytes.

    Raises:
        ValueError: if it would, or if the file is not as torch.save writes tensors.
        Exception: of other kinds, if it is broken.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(LARGEST)
    if start[:4] == b"PK\3\4":  # as torch decides it
        run = _DryRun(_list_of(path, size))
        run.load()
    else:
        run = _DryRun(start)
        *_, keys = [run.load() for _ in range(5)]  # magic, version, system, tensors, storages
        if set(keys) != run.storages.keys():
            raise ValueError("it lacks numbers of some tensors")
    if (claimed := sum(run.storages.values())) > size:
        raise ValueError(f"it claims {claimed} bytes of numbers, more than it holds")


def _list_of(path: Path, size: int) -> bytes:
    """The pickle in a zip archive, which must not be a bomb: torch.save compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if is_packed or sum(entry.file_size for entry in entries) > size:
            raise ValueError("it would grow when it is unpacked")
        if len({entry.filename.lower() for entry in entries}) < len(entries):  # torch finds any
            raise ValueError("it has two files of one name")
        pickled = archive.getinfo(f"{entries[0].filename.partition('/')[0]}/data.pkl")
        if pickled.file_size > LARGEST:
            raise ValueError(f"its list of tensors would have {pickled.file_size} bytes")
        del pickled.CRC  # which is right only if whoever saved the file wanted that
        return archive.read(pickled)


def _see_tensor(  # noqa: PLR0913 - as torch calls it
    storage: tuple[int, int],
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    _requires_grad: bool = False,
    _hooks: object = None,
) -> None:
    """A tensor must lie inside its storage, or torch makes that larger."""
    _, count = storage
    steps = zip(size, stride, strict=True)
    last = offset + sum((length - 1) * step for length, step in steps)
    is_inside = last < count or not all(size)
    if len(size) > 8 or min((offset, *size, *stride)) < 0 or not is_inside:
        raise ValueError("it has a tensor that goes beyond its numbers")


def _see_state(run: Any) -> None:
    """Only a state_dict has an attribute."""
    if list(run.stack.pop()) != ["_metadata"]:
        raise ValueError("it has objects with attributes")


# What a pickle may ask for, and what stands for it in a dry run: for a class of storages the size
# of one number; for a storage that size, and how many numbers it has.
_KNOWN: dict[str, int | Callable[..., Any]] = {
    "collections.OrderedDict": lambda: {},  # always made empty, then filled
    "torch._utils._rebuild_tensor": _see_tensor,
    "torch._utils._rebuild_tensor_v2": _see_tensor,
    "torch._utils._rebuild_parameter": lambda _tensor, _requires_grad, _hooks: None,
    **dict.fromkeys(("torch.DoubleStorage", "torch.LongStorage"), 8),
    **dict.fromkeys(("torch.FloatStorage", "torch.IntStorage"), 4),
    **dict.fromkeys(("torch.HalfStorage", "torch.BFloat16Storage", "torch.ShortStorage"), 2),
    **dict.fromkeys(("torch.CharStorage", "torch.ByteStorage", "torch.BoolStorage"), 1),
}


class _DryRun(pickle._Unpickler):
    """Builds nothing, but counts the bytes that would be read."""

    dispatch = {op: run for op, run in pickle._Unpickler.dispatch.items() if op in _OPCODES}
    dispatch[pickle.BUILD[0]] = _see_state

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self.storages: dict[str, int] = {}  # key -> bytes

    def find_class(self, module: str, name: str) -> int | Callable[..., Any]:
        if f"{module}.{name}" not in _KNOWN:
            raise ValueError(f"it asks for {shown(f'{module}.{name}')}")
        return _KNOWN[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> tuple[int, int]:
        _, item, key, _, count, *view = pid
        if count < 0 or any(view) or self.storages.setdefault(key, item * count) != item * count:
            raise ValueError("its storages contradict each other")
        return item, count
