"""What is on the disk of a training: `Journal`, a log and checkpoints that never contradict it.

log.jsonl grows a line at a time. checkpoint.pt is replaced as a whole, when what it follows from is
on the disk; it says how long the log was, and on resuming the log is cut to that. best.pt has the
weights of the best evaluation. Read next: training.py.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from minibert.config import CheckpointError
from minibert.shards import be_alone, sync_folder, to_disk

_FORMAT = "minibert training 1"


class Journal:
    """The folder of one run; opened at once, and no other process may write in it until close.

    Args:
        folder: need not exist.
        writes: of several processes only the first does; the others read.

    Raises:
        CheckpointError: here and from every method, if the folder cannot be written, or a file in
            it is broken.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.checkpoint = folder / "checkpoint.pt"
        self._folder, self._writes = folder, writes
        self._best, self._log_path = folder / "best.pt", folder / "log.jsonl"
        if writes:
            with self._writing():
                folder.mkdir(parents=True, exist_ok=True)
                self._log = self._log_path.open("ab")
                be_alone(self._log.fileno(), folder, self._log.close)

    def resume(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """What was saved last, or None; the log is cut to what it was then.

        Args:
            identity: what the run follows from; a CheckpointError if the checkpoint's is another.
        """
        saved = _read(self.checkpoint) if self.checkpoint.exists() else None
        if saved is not None:
            _check_same(self.checkpoint, saved["identity"], identity)
        size = saved["log_bytes"] if saved else 0
        if self._writes:
            if self._log.tell() < size:
                raise CheckpointError(
                    f"{self._log_path} is shorter than when {self.checkpoint} was"
                )
            with self._writing():
                self._log.truncate(size)
        return saved

    def write(self, line: dict[str, Any]) -> None:
        """Add a line to the log, where it outlives the process at once."""
        if self._writes:
            with self._writing():
                self._log.write(json.dumps(line).encode() + b"\n")
                self._log.flush()

    def save(self, identity: dict[str, Any], state: dict[str, Any]) -> None:
        """Replace the checkpoint; the log first, which may be ahead of it but never behind."""
        if self._writes:
            with self._writing():
                size = to_disk(self._log)
            content = {"identity": identity, "log_bytes": size, **state}
            self._replace(self.checkpoint, content)

    def save_best(self, weights: dict[str, Any]) -> None:
        """Replace the best weights."""
        if self._writes:
            self._replace(self._best, {"model": weights})

    def best(self) -> dict[str, Any]:
        """The best weights."""
        weights: dict[str, Any] = _read(self._best)["model"]
        return weights

    def close(self) -> None:
        """Let others write in the folder."""
        if self._writes:
            self._log.close()

    def _replace(self, path: Path, content: dict[str, Any]) -> None:
        """Write a file so that at any moment it is the old one or the new one."""
        draft = path.with_name(f"{path.name}.tmp")
        with self._writing():
            with draft.open("wb") as file:
                torch.save({"format": _FORMAT, **content}, file)
                to_disk(file)
            os.replace(draft, path)
            sync_folder(self._folder)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch.save makes the first into the second
            cause = error.__context__ if isinstance(error, RuntimeError) else error
            reason = getattr(cause, "strerror", None) or error
            raise CheckpointError(f"cannot write in {self._folder}: {reason}") from error


def _check_same(path: Path, saved: dict[str, Any], asked: dict[str, Any]) -> None:
    for name, value in asked.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"{path} is of another run: its {name} is {saved.get(name)}, here it is {value}; "
                "give the same again, or another folder"
            )


def _read(path: Path) -> dict[str, Any]:
    """A file that `_replace` wrote; nothing in it is run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file can provoke
        raise CheckpointError(f"{path} is broken; delete it to begin anew") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of a training; take another folder")
    return content
