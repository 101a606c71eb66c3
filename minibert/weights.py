"""The tensors in a model's files: safetensors, one file or several, or a pickle if it is allowed.

Here a tensor is found and read under the name that the file has; which ones a BERT needs is
checkpoint.py's. A pickle is a program: `torch.load(weights_only=True)` runs only what builds
tensors, and that only since torch 2.10 without known holes (CVE-2025-32434, CVE-2026-24747); what
memory it would take is looked at before (pickles.py).
Read next: checkpoint.py.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minibert.config import CheckpointError
from minibert.files import looks_like, read_object, unique
from minibert.glossary import shown
from minibert.hub import ModelFiles
from minibert.pickles import LARGEST, check_pickle

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
COUNTS = {"I64": torch.int64, "I32": torch.int32}  # of the one buffer that old checkpoints have
_NAMES = {dtype: name for name, dtype in {**DTYPES, **COUNTS}.items()}

_SAFETENSORS = "model.safetensors"
_PICKLE = "pytorch_model.bin"

# What else weights come as, and what to do then.
_OTHERS = {
    r"\.ckpt(-\d+)?\.index": "TensorFlow's; scripts/convert_tf_checkpoint.py converts it",
    r"tf_model\.h5|flax_model\.msgpack": "which transformers 4 converts; minibert does not",
    r".*\.onnx": "a program for other software",
}


class Stored(NamedTuple):
    """One tensor in a file."""

    name: str  # as the file has it
    path: Path
    shape: tuple[int, ...]
    dtype: str  # in the words of safetensors
    start: int = 0  # its first byte
    content: Tensor | None = None  # of a pickle, which is read as a whole


def find_weights(files: ModelFiles, allow_pickle: bool) -> tuple[Path, list[Stored]]:
    """Find the tensors of a model.

    Args:
        files: as find_files gives them.
        allow_pickle: whether pytorch_model.bin will do where there is no model.safetensors.

    Returns:
        The file that names them all (the weights or their index), and every tensor in it.

    Raises:
        CheckpointError: if there is no such file, or one is broken, or an index does not fit.
    """
    formats: list[tuple[str, Callable[[Path], list[Stored]]]] = [(_SAFETENSORS, _read_header)]
    if allow_pickle:
        formats.append((_PICKLE, _read_pickle))
    for name, read in formats:
        if (path := files.find(name)) is not None:
            with enough_memory(path):
                return path, read(path)
        if (path := files.find(f"{name}.index.json")) is not None:
            with enough_memory(path):
                return path, _read_shards(files, path, read)
    raise CheckpointError(_what_there_is(files))


@contextmanager
def enough_memory(path: Path) -> Iterator[None]:
    """Make a CheckpointError of the errors with which Python and torch run out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        raise CheckpointError(f"{path} takes more memory than there is") from error


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "allocate" in str(error)


def read_tensor(stored: Stored) -> Tensor:
    """Read one tensor into memory of its own.

    Never a view of a memory-mapped file: should the file shrink later, the process would die.

    Raises:
        CheckpointError: if the file has shrunk since its header was read.
    """
    if stored.content is not None:
        return stored.content
    tensor = torch.empty(stored.shape, dtype={**DTYPES, **COUNTS}[stored.dtype])
    memory = tensor.view(-1).view(torch.uint8).numpy().data
    with stored.path.open("rb") as file:
        file.seek(stored.start)
        if file.readinto(memory) != memory.nbytes:
            within = f"{stored.path} ends within {shown(stored.name)}"
            raise CheckpointError(f"{within}; download it again")
    return tensor


def _what_there_is(files: ModelFiles) -> str:
    """Why there are no weights."""
    lacks = files.lacks(_SAFETENSORS)
    names = files.names()
    for name in names:
        if re.fullmatch(rf"{_PICKLE}(\.index\.json)?", name):
            return (
                f"{lacks}, only {name}: a pickle, which is a program; allow_pickle=True or "
                "--allow-pickle reads its tensors alone, and minibert.save then converts it"
            )
    for pattern, advice in _OTHERS.items():
        for name in names:
            if re.search(f"(?:{pattern})$", name):
                return f"{lacks}, only {name}, {advice}"
    return lacks


def _read_header(path: Path) -> list[Stored]:
    """What a safetensors file says of its tensors."""
    try:
        with path.open("rb") as file:
            start = file.read(100)
            size = int.from_bytes(start[:8], "little")
            if size > LARGEST or len(start) < 8:
                raise ValueError(looks_like(start) or f"its header would have {size} bytes")
            file.seek(8)
            header = json.loads(file.read(size), object_pairs_hook=unique)
        with safe_open(path, framework="numpy"):
            pass  # checks the whole layout: no gap, no overlap, nothing beyond the end
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        reason = shown(str(error), 200)
        raise CheckpointError(f"{path} is broken ({reason}); download it again") from error
    header.pop("__metadata__", None)
    return [
        Stored(name, path, tuple(e["shape"]), e["dtype"], 8 + size + e["data_offsets"][0])
        for name, e in header.items()
    ]


def _read_shards(
    files: ModelFiles, index: Path, read: Callable[[Path], list[Stored]]
) -> list[Stored]:
    """All tensors of several files, which must be those that the index names, each in its file."""
    places = read_object(index).get("weight_map")
    if not (isinstance(places, dict) and places):
        raise CheckpointError(f"{index} has no weight_map; it is not an index of weights")
    if len(places) > LARGEST >> 7:  # as a header is bounded: a hostile one would take minutes
        raise CheckpointError(f"{index} names {len(places)} tensors, more than a BERT has")
    if wrong := [place for place in places.values() if not isinstance(place, str)]:
        raise CheckpointError(f"{index} names {wrong[0]!r:.80}, which is not the name of a file")
    found: list[Stored] = []
    for shard in sorted(set(places.values())):
        path = files.shard(shard, index.name)
        stored = read(path)
        differ = {s.name for s in stored} ^ {name for name in places if places[name] == shard}
        if differ:
            count = f"{len(differ)} tensors, such as {shown(min(differ))}"
            raise CheckpointError(f"{path} and {index.name} differ in {count}; one was replaced")
        found += stored
    return found


def _read_pickle(path: Path) -> list[Stored]:
    """The tensors of a pickle, without running anything else of it."""
    version = torch.__version__.split(".")
    if (int(version[0]), int(version[1])) < (2, 10):
        raise CheckpointError(
            f"{path} is a pickle, which is safe to read from torch 2.10 on; this is "
            f"{torch.__version__}: install a newer one, or get the model as safetensors"
        )
    try:
        with path.open("rb") as file:
            start = file.read(100)
        check_pickle(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile file can provoke
        if _is_of_memory(error):
            raise
        # Without torch's own text, which recommends weights_only=False.
        kind = shown(str(error), 200) if isinstance(error, ValueError) else type(error).__name__
        what = looks_like(start) if start[:1] != b"\x80" and start[:2] != b"PK" else ""
        raise CheckpointError(
            f"{path} is not a pickle of tensors alone ({what or kind}); nothing in it was run"
        ) from error
    return _tensors(path, content)


def _tensors(path: Path, content: Any) -> list[Stored]:
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not tensors by name")
    for name, tensor in content.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            kind = type(tensor).__name__
            raise CheckpointError(f"{path} has {name!r:.100}, a {kind}: no tensor that a BERT has")
    # A view can repeat one number a billion times. Only a head's tensors are ever stored twice.
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    if claimed > 2 * path.stat().st_size:
        raise CheckpointError(f"{path} claims {claimed} bytes of numbers, more than it holds")
    return [
        Stored(
            name,
            path,
            tuple(tensor.shape),
            _NAMES.get(tensor.dtype, str(tensor.dtype)),
            content=tensor.detach().contiguous(),
        )
        for name, tensor in content.items()
    ]
