"""`read_vectors`: item i of what `minibert extract` wrote, without loading the rest.

The formats are described in shards.py. Read next: job.py.
"""

import functools
import json
import logging
import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from minibert.config import CheckpointError

_log = logging.getLogger(__name__)


class StoredText(NamedTuple):
    """What is stored of one text; None for what the format does not have."""

    vectors: NDArray[np.float32]  # (n, H), or (n, layers, H) where layers were kept apart
    tokens: list[str] | None  # n tokens or words, or the text
    offsets: list[tuple[int, int]] | None  # where they stand in the text
    segments: list[int] | None  # 1 in the second text of a pair


@dataclass(frozen=True)
class StoredVectors:
    """The vectors of many texts on a disk: `stored[i]` is the StoredText of text i, from 0."""

    count: int
    is_complete: bool  # False while they are being written, or after the writer was killed
    _fetch: Callable[[int], StoredText]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, text: int) -> StoredText:
        if not 0 <= text < self.count:
            raise IndexError(f"there is no text {text}: there are {self.count}")
        return self._fetch(text)


def read_vectors(path: str | os.PathLike[str]) -> StoredVectors:
    """Open what `minibert extract --output` wrote: a folder of shards, .npy or .jsonl.

    What is not complete yet is readable, too, as far as it goes; that is logged.

    Args:
        path: the folder or the file; of files, Google's JSON lines from elsewhere are welcome.

    Raises:
        CheckpointError: if it is none of these, or broken; for JSON lines when the line is read.
    """
    folder = Path(path)
    manifest = folder / "manifest.json"
    if not folder.is_dir():
        manifest = folder.with_name(f"{folder.name}.manifest.json")
    try:
        told = json.loads(manifest.read_bytes()) if manifest.is_file() else None
        is_complete = told is None or told["complete"]
        if folder.is_dir() or (told is not None and not told["files"]):  # or not begun yet
            count, fetch = _of_shards(folder, told)
        else:
            with folder.open("rb") as file:
                is_array = file.read(6) == b"\x93NUMPY"
            size = None if told is None else told["files"][0]["bytes"]
            count, fetch = _of_array(folder) if is_array else _of_json_lines(folder, size)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"cannot read vectors from {folder}: {error}") from error
    if not is_complete:
        _log.warning("%s is not complete yet: it has the first %d texts", folder, count)
    return StoredVectors(count, is_complete, fetch)


def _of_shards(
    folder: Path, manifest: dict[str, Any] | None
) -> tuple[int, Callable[[int], StoredText]]:
    if manifest is None:
        raise FileNotFoundError("it has no manifest.json")
    files = manifest["files"]
    firsts = [entry["first"] for entry in files]

    @functools.lru_cache(maxsize=8)  # an open shard costs a mapping and its `starts`
    def shard(number: int) -> tuple[Any, list[int]]:
        opened: Any = safe_open(folder / files[number]["file"], framework="pt")
        return opened, opened.get_tensor("starts").tolist()

    def fetch(text: int) -> StoredText:
        number = bisect_right(firsts, text) - 1
        try:
            opened, starts = shard(number)
        except (OSError, SafetensorError) as error:
            name = files[number]["file"]
            raise CheckpointError(f"{folder / name} is missing or broken: {error}") from error
        begin, end = starts[text - firsts[number] : text - firsts[number] + 2]

        def rows(name: str, begin: int = begin, end: int = end) -> Any:
            part = opened.get_slice(name)
            if begin == end:  # which not every release of safetensors slices
                return np.empty((0, *part.get_shape()[1:]), np.float32)
            tensor = part[begin:end]
            return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

        places = rows("token_starts", begin, end + 1).tolist()
        letters = bytes(rows("tokens", places[0], places[-1]).astype(np.uint8))
        tokens = [
            letters[a - places[0] : b - places[0]].decode()
            for a, b in zip(places, places[1:], strict=False)
        ]
        offsets = [(a, b) for a, b in rows("offsets").tolist()]
        return StoredText(rows("vectors"), tokens, offsets, rows("segments").tolist())

    return sum(entry["texts"] for entry in files), fetch


def _of_array(path: Path) -> tuple[int, Callable[[int], StoredText]]:
    array = np.load(path, mmap_mode="r") if path.stat().st_size > 128 else np.load(path)

    def fetch(text: int) -> StoredText:
        return StoredText(array[text : text + 1].astype(np.float32), None, None, None)

    return len(array), fetch


def _of_json_lines(path: Path, size: int | None) -> tuple[int, Callable[[int], StoredText]]:
    """Where each line begins is found once, by reading the file through."""
    starts = [np.zeros(1, np.int64)]
    place = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size if size is None else size
        while place < size and (block := file.read(min(1 << 20, size - place))):
            starts.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + place + 1)
            place += len(block)
    ends = np.concatenate(starts)
    if place > ends[-1]:
        raise ValueError("its last line does not end")

    def fetch(text: int) -> StoredText:
        with path.open("rb") as file:
            file.seek(ends[text])
            line = file.read(int(ends[text + 1] - ends[text]))
        try:
            features = json.loads(line)["features"]
            tokens = [feature["token"] for feature in features]
            values = [[layer["values"] for layer in f["layers"]] for f in features]
            vectors = np.array(values, np.float32)
        except (ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"line {text + 1} of {path} is not Google's JSON") from error
        if vectors.ndim == 3 and vectors.shape[1] == 1:
            vectors = vectors[:, 0]
        return StoredText(vectors, tokens, None, None)

    return len(ends) - 1, fetch
