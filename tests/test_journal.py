import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from minibert.config import CheckpointError
from minibert.journal import Journal

IDENTITY = {"data": "abc", "steps": 3}


def lines(folder: Path) -> list[dict[str, int]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def write(folder: Path) -> None:
    """Two lines, a checkpoint, and a third line that came after it."""
    with closing(Journal(folder)) as journal:
        assert journal.resume(IDENTITY) is None
        journal.write({"step": 1})
        journal.write({"step": 2})
        journal.save(IDENTITY, {"step": 2, "model": {"weight": torch.arange(3.0)}})
        journal.write({"step": 3})


def test_the_log_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the process was killed here
    with closing(Journal(tmp_path)) as journal:
        saved = journal.resume(IDENTITY)
        assert saved is not None
        assert saved["step"] == 2
        assert torch.equal(saved["model"]["weight"], torch.arange(3.0))
        assert lines(tmp_path) == [{"step": 1}, {"step": 2}]
        journal.write({"step": 3})
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_log_without_checkpoint_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    with closing(Journal(tmp_path)) as journal:
        assert journal.resume(IDENTITY) is None
    assert lines(tmp_path) == []


def test_a_checkpoint_of_another_run_is_kept(tmp_path: Path) -> None:
    write(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes(), (tmp_path / "log.jsonl").read_bytes()
    with closing(Journal(tmp_path)) as journal:
        told = "checkpoint.pt is of another run: its steps is 3, here it is 4; give the same"
        with pytest.raises(CheckpointError, match=told):
            journal.resume({**IDENTITY, "steps": 4})
    after = (tmp_path / "checkpoint.pt").read_bytes(), (tmp_path / "log.jsonl").read_bytes()
    assert after == before


@pytest.mark.parametrize("content", [b"", b"PK", b"half"])
def test_a_broken_checkpoint(tmp_path: Path, content: bytes) -> None:
    write(tmp_path)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(
        whole[: len(whole) // 2] if b"h" in content else content
    )
    with (
        closing(Journal(tmp_path)) as journal,
        pytest.raises(CheckpointError, match="checkpoint.pt is broken; delete it to begin anew"),
    ):
        journal.resume(IDENTITY)
    assert len(lines(tmp_path)) == 3


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "checkpoint.pt")
    with (
        closing(Journal(tmp_path)) as journal,
        pytest.raises(CheckpointError, match="is not a checkpoint of a training"),
    ):
        journal.resume(IDENTITY)


def test_a_log_that_was_lost(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    with (
        closing(Journal(tmp_path)) as journal,
        pytest.raises(CheckpointError, match=r"log.jsonl is shorter than"),
    ):
        journal.resume(IDENTITY)


def test_one_writer(tmp_path: Path) -> None:
    with (
        closing(Journal(tmp_path)),
        pytest.raises(CheckpointError, match="another process is writing"),
    ):
        Journal(tmp_path)
    with closing(Journal(tmp_path)), closing(Journal(tmp_path, writes=False)) as reader:
        reader.write({"step": 1})
        reader.save(IDENTITY, {})
    assert os.listdir(tmp_path) == ["log.jsonl"]
    assert lines(tmp_path) == []


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="cannot write in .*run: File exists"):
        Journal(tmp_path / "run")


@pytest.fixture
def _small_disk() -> Iterator[None]:
    """Files of at most 10,000 bytes."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("_small_disk")
def test_a_full_disk(tmp_path: Path) -> None:
    write(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with closing(Journal(tmp_path)) as journal:
        journal.resume(IDENTITY)
        with pytest.raises(CheckpointError, match=r"cannot write in .*: File too large$"):
            journal.save(IDENTITY, {"model": torch.zeros(10_000)})
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    code = f"""
import os, pickle
class Evil:
    def __reduce__(self):
        return os.mkdir, ({str(tmp_path / "was-run")!r},)
import torch
torch.save(Evil(), {str(tmp_path / "checkpoint.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with closing(Journal(tmp_path)) as journal, pytest.raises(CheckpointError, match="is broken"):
        journal.resume(IDENTITY)
    assert not (tmp_path / "was-run").exists()
