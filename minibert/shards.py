"""How the vectors of many texts are stored, and written so that nothing is lost.

A **folder of shards**: `vectors-00000.safetensors` and so on, each with the next texts in order;
"files" in manifest.json (manifest.py) has, for each, `file`, `first` (number of its first text,
from 0), `texts`, `rows` and `bytes`. A shard of n texts and N rows (a row is a token, a word or a
whole text) has these tensors:

    starts        I64 (n + 1)   text i of the shard has the rows from starts[i] up to starts[i + 1]
    token_starts  I64 (N + 1)   row r has the bytes from token_starts[r] up to token_starts[r + 1]
    tokens        U8            of this: what each row is the vector of, in UTF-8
    offsets       I32 (N, 2)    where that stands in the text, counted in code points from 0: start
                                and end; (0, 0) for an added token
    segments      U8 (N)        0; 1 in the second text of a pair, whose offsets count from its own
                                beginning
    vectors       F32, F16 or BF16: (N, H), or (N, layers, H) where layers are kept apart

One **.npy** file (version 1.0, a header of 128 bytes) has a row per text. It can be mapped while it
is written: the header counts the rows that are complete. **.jsonl** is the format of
google-research/bert@eedf571 extract_features.py; only layers from 0 up mean something else there,
see names.py, and a combination of layers has its description as "index".

Read next: stored.py.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from io import BufferedRandom, BufferedWriter
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from minibert.config import CheckpointError
from minibert.vectors import Vectors

STORE_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
NPY_HEADER = 128


class Extracted(NamedTuple):
    """The vectors of one line."""

    line: int  # its number, from 0
    layers: Sequence[int | str]  # numbers as they were asked for, or what became of them
    vectors: Vectors  # (N, H), or (N, len(layers), H)
    unit: str = "token"  # what has a vector


def to_json(extracted: Extracted) -> str:
    """One line of Google's format: every token, for each its layers, values to 6 decimals."""
    rows = extracted.vectors.vectors
    rows = rows if rows.ndim == 3 else rows[:, None]
    tokens = []
    for token, vectors in zip(extracted.vectors.tokens, rows.tolist(), strict=True):
        layers = [
            {"index": layer, "values": [round(value, 6) for value in vector]}
            for layer, vector in zip(extracted.layers, vectors, strict=True)
        ]
        tokens.append({"token": token, "layers": layers})
    return json.dumps({"linex_index": extracted.line, "features": tokens})


class ShardWriter:
    """Writes a folder of shards; each gets its name when all of it is on the disk.

    Vectors may come in any order: their places are known before they are.
    """

    def __init__(
        self, folder: Path, row: tuple[int, ...], dtype: str, files: list[dict[str, Any]]
    ) -> None:
        self.files = files  # as in the manifest; those that are there already are checked
        self._folder, self._row, self._dtype = folder, row, dtype
        for entry in files:
            _check_size(folder / entry["file"], entry["bytes"], exact=True)
        descriptor = os.open(folder, os.O_RDONLY)
        self._lock, self._open = ExitStack(), ExitStack()
        self._lock.callback(os.close, descriptor)
        be_alone(descriptor, folder, self._lock.close)

    def begin(self, first: int, layout: Vectors) -> None:
        """Open a shard whose first text is line `first`; `layout` has all but the numbers."""
        tokens = [token.encode() for token in layout.tokens]
        width = torch.finfo(getattr(torch, self._dtype)).bits // 8
        rows = len(tokens)
        before = {
            "starts": np.array(layout.starts, "<i8"),
            "token_starts": np.array([0, *accumulate(map(len, tokens))], "<i8"),
            "offsets": np.array(layout.offsets, "<i4").reshape(rows, 2),
        }
        after = {
            "segments": np.array(layout.segments, "u1"),
            "tokens": np.frombuffer(b"".join(tokens), "u1"),
        }
        self._first, self._starts = first, layout.starts
        self._row_bytes = math.prod(self._row) * width
        self._path = self._folder / f"vectors-{len(self.files):05}.safetensors"
        # Wide numbers first, so that each tensor begins at a multiple of its own width.
        stored = {
            name: (_CODES[a.dtype.str], list(a.shape), a.nbytes) for name, a in before.items()
        }
        stored["vectors"] = (STORE_DTYPES[self._dtype], [rows, *self._row], rows * self._row_bytes)
        stored |= {
            name: (_CODES[a.dtype.str], list(a.shape), a.nbytes) for name, a in after.items()
        }
        self._file = self._open.enter_context(_temporary(self._path).open("wb"))
        self._file.write(_safetensors_header(stored))
        for array in before.values():
            self._file.write(array.tobytes())
        self._place = self._file.tell()
        self._file.seek(self._place + rows * self._row_bytes)
        for array in after.values():
            self._file.write(array.tobytes())

    def put(self, text: int, vectors: Vectors) -> None:
        """Write the rows of one text of the shard."""
        self._file.seek(self._place + self._starts[text] * self._row_bytes)
        self._file.write(_numbers(vectors, self._dtype, self._first + text))

    def finish(self) -> None:
        """Give the shard its name, and an entry in `files`."""
        size = to_disk(self._file)
        self._open.close()
        os.replace(_temporary(self._path), self._path)
        sync_folder(self._folder)
        counts = {"texts": len(self._starts) - 1, "rows": self._starts[-1], "bytes": size}
        self.files.append({"file": self._path.name, "first": self._first, **counts})

    def close(self) -> None:
        """Let go of the folder, and of a shard that is not complete."""
        self._lock.close()
        self._open.close()


class NpyWriter:
    """Writes one array, a row a text, and counts a row in its header when it is on the disk."""

    def __init__(
        self, path: Path, row: tuple[int, ...], dtype: str, files: list[dict[str, Any]]
    ) -> None:
        self.files = files
        self._row, self._dtype = row, dtype
        self._row_bytes = math.prod(row) * (4 if dtype == "float32" else 2)
        self._file = _open_at(path, files)
        self._count(self.files[0]["texts"])

    def begin(self, first: int, _layout: Vectors) -> None:
        """Go on with line `first`."""
        self._first, self._texts = first, len(_layout)

    def put(self, text: int, vectors: Vectors) -> None:
        """Write the row of one text."""
        self._file.seek(NPY_HEADER + (self._first + text) * self._row_bytes)
        self._file.write(_numbers(vectors, self._dtype, self._first + text))

    def finish(self) -> None:
        """Count the rows in."""
        to_disk(self._file)
        self._count(self._first + self._texts)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _count(self, texts: int) -> None:
        kind = "<f4" if self._dtype == "float32" else "<f2"
        header = {"descr": kind, "fortran_order": False, "shape": (texts, *self._row)}
        length = NPY_HEADER - 10
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little"))
        self._file.write(repr(header).ljust(length - 1).encode() + b"\n")
        self.files[0] |= {"texts": texts, "bytes": to_disk(self._file)}


class JsonWriter:
    """Writes Google's JSON lines."""

    def __init__(
        self, path: Path, layers: Sequence[int | str], files: list[dict[str, Any]]
    ) -> None:
        self.files = files
        self._layers = layers
        self._file = _open_at(path, files)

    def begin(self, first: int, layout: Vectors) -> None:
        """Go on with line `first`."""
        self._first = first
        self._lines = [""] * len(layout)

    def put(self, text: int, vectors: Vectors) -> None:
        """Keep the line of one text, for lines are of any length."""
        _check_finite(vectors.vectors, self._first + text, "float32")
        self._lines[text] = to_json(Extracted(self._first + text, self._layers, vectors)) + "\n"

    def finish(self) -> None:
        """Write the lines in order."""
        for line in self._lines:
            self._file.write(line.encode())
        size = to_disk(self._file)
        self.files[0] |= {"texts": self._first + len(self._lines), "bytes": size}

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


Writer = ShardWriter | NpyWriter | JsonWriter

_CODES = {"<i8": "I64", "<i4": "I32", "|u1": "U8"}


def _safetensors_header(stored: dict[str, tuple[str, list[int], int]]) -> bytes:
    ends = list(accumulate(size for _, _, size in stored.values()))
    header: dict[str, Any] = {"__metadata__": {"format": "minibert vectors 1"}}
    for (name, (dtype, shape, size)), end in zip(stored.items(), ends, strict=True):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end - size, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _numbers(vectors: Vectors, dtype: str, line: int) -> bytes:
    if dtype == "bfloat16":
        rounded = torch.from_numpy(np.ascontiguousarray(vectors.vectors)).to(torch.bfloat16)
        _check_finite(rounded.float().numpy(), line, dtype)
        return rounded.view(torch.int16).numpy().astype("<i2").tobytes()
    with np.errstate(over="ignore"):  # told below, with its line
        stored = vectors.vectors.astype("<f4" if dtype == "float32" else "<f2")
    _check_finite(stored, line, dtype)
    return stored.tobytes()


def _check_finite(array: NDArray[Any], line: int, dtype: str) -> None:
    if not np.isfinite(array).all():
        raise ValueError(f"line {line + 1}: a vector is not finite as {dtype}; take a wider dtype")


def _open_at(path: Path, files: list[dict[str, Any]]) -> BufferedRandom:
    """The one file of an output, at the end of what the manifest says is in it."""
    if not files:
        files.append({"file": path.name, "texts": 0, "bytes": 0})
        path.touch()
    _check_size(path, files[0]["bytes"], exact=False)
    file = path.open("r+b")
    be_alone(file.fileno(), path, file.close)
    file.truncate(files[0]["bytes"])
    file.seek(0, os.SEEK_END)
    return file


def be_alone(descriptor: int, path: Path, close: Callable[[], None]) -> None:
    """An OSError while another process writes here; two would tear each other's files."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            close()
            raise OSError(f"cannot write {path}: another process is writing it") from error


def _check_size(path: Path, size: int, exact: bool) -> None:
    found = path.stat().st_size if path.is_file() else 0
    if found < size or (exact and found > size):
        raise CheckpointError(
            f"{path} has {found} bytes, not the {size} of its manifest; --overwrite begins anew"
        )


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def to_disk(file: BufferedRandom | BufferedWriter) -> int:
    """Wait until all is on the disk; gives the size."""
    file.flush()
    os.fsync(file.fileno())
    return os.fstat(file.fileno()).st_size


def write_output(path: Path, content: bytes) -> None:
    """Write a file that a user named; an OSError if that fails, and then a plain one is as it was.

    A link, a pipe and a device are written to, and never replaced.
    """
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_bytes(content)
        else:
            replace(path, content)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def replace(path: Path, content: bytes) -> None:
    """Write a small file so that at any moment it is the old one or the new one."""
    with _temporary(path).open("wb") as file:
        file.write(content)
        to_disk(file)
    os.replace(_temporary(path), path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if hasattr(os, "O_DIRECTORY"):  # not on Windows, which can't
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)
