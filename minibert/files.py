"""Reading files that may be anything.

A file may be cut, hostile, or something else than its name says. All that minibert reads of a
model, the weights excepted, goes through `read_bytes` and `read_json`. Read next:
tokenizer_json.py.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from minibert.config import CheckpointError

_LARGEST = 1 << 25  # bytes; the tokenizer.json of the largest BERT vocabularies has half as many

# What stands in a model's folder under the wrong name, by its first bytes.
_STARTS = {
    b"version https://git-lfs": "it is a Git LFS pointer: run `git lfs pull`",
    b"<!doctype": "it is a web page",
    b"<html": "it is a web page",
    b"pk\3\4": "it is a zip archive, as torch.save writes",
    b"\x80": "it is a pickle",
    b"\x1f\x8b": "it is compressed by gzip",
    b"\x89hdf": "it is HDF5",
}


def is_file(path: Path) -> bool:
    """Whether there is such a file.

    Raises:
        CheckpointError: if the name is there, but stands for no file: a directory, a FIFO (to open
            one would wait for ever), a link to nothing or to itself; or must not be looked at.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link to nothing: {os.readlink(path)}") from error
        return False
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a FIFO, socket or device"
        raise CheckpointError(f"{path} is {kind}; a file belongs there")
    return True


def read_bytes(path: Path) -> bytes:
    """The content of a file of at most 32 MiB; a CheckpointError if it cannot be had."""
    if not is_file(path):
        raise CheckpointError(f"cannot read {path}: No such file or directory")
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise CheckpointError(f"{path} has more than {_LARGEST} bytes; it is not a BERT's")
    return content


def read_json(path: Path) -> Any:
    """The value in a JSON file; a CheckpointError if there is none, or a key stands twice."""
    content = read_bytes(path)
    try:
        return json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = looks_like(content) or error
        raise CheckpointError(f"{path} is not a readable JSON file: {reason}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a CheckpointError if there is none."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON; of two equal keys others silently take the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("an object has a key twice")
    return values


def looks_like(content: bytes) -> str:
    """What a file is that is not what it should be, told by its start; "" if it cannot be told.

    >>> looks_like(b"<!DOCTYPE html>")
    'it is a web page'
    """
    if not content.strip():
        return "it is empty"
    start = content[:100].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((kind for mark, kind in _STARTS.items() if start.startswith(mark)), "")
