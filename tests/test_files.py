import os
from collections.abc import Callable
from pathlib import Path

import pytest

from minibert.config import CheckpointError
from minibert.files import is_file, looks_like, read_bytes, read_json, read_object


def test_a_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    assert is_file(tmp_path / "file")
    assert is_file(tmp_path / "link")
    assert not is_file(tmp_path / "none")
    assert not is_file(tmp_path / "file" / "none")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.mkdir, "is a directory; a file belongs there"),
        (os.mkfifo, "is a FIFO, socket or device; a file belongs there"),
        (lambda path: path.symlink_to("/dev/zero"), "is a FIFO, socket or device"),
        (lambda path: path.symlink_to("nowhere"), "is a link to nothing: nowhere"),
        (lambda path: path.symlink_to(path.name), "cannot read .*: Too many levels of symbolic"),
    ],
    ids=["directory", "FIFO", "endless device", "dangling link", "link to itself"],
)
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    make(tmp_path / "it")
    for read in (is_file, read_bytes, read_json):
        with pytest.raises(CheckpointError, match=says):
            read(tmp_path / "it")


def test_no_permission(tmp_path: Path, as_nobody: Callable[[], None]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"{}")
    path.chmod(0)
    as_nobody()
    with pytest.raises(CheckpointError, match="cannot read .*: Permission denied"):
        read_json(path)


def test_a_file_without_end(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(10**12)  # takes no room
    with pytest.raises(CheckpointError, match="has more than 33554432 bytes; it is not a BERT's"):
        read_bytes(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"\xef\xbb\xbf<!DOCTYPE html>", "it is a web page"),
        (b"  <HTML>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer: run `git lfs"),
        (b"PK\3\4", "it is a zip archive"),
        (b"\x80\2}", "it is a pickle"),
        (b"\x89HDF\r\n", "it is HDF5"),
        (b"\x1f\x8b\x08", "it is compressed by gzip"),
    ],
)
def test_what_it_is(tmp_path: Path, content: bytes, says: str) -> None:
    assert looks_like(content).startswith(says)
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"is not a readable JSON file: {says}"):
        read_object(tmp_path / "file")


def test_what_it_is_not() -> None:
    assert looks_like(b"<s>\n<pad>\n") == looks_like(b"[PAD]") == looks_like(b'{"a": 1}') == ""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" * 100_000, "recursion"),
        (b'{"a": 1, "a": 1}', "an object has a key twice"),
        (b'{"a": %s}' % (b"9" * 5000), "Exceeds the limit"),
        (b'{"a": 1', "Expecting"),
        (b"\xff\xfe\xff", "decode"),
    ],
    ids=["deep", "twice", "5000 digits", "cut", "not UTF-8"],
)
def test_bad_json(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"is not a readable JSON file: .*{says}"):
        read_json(tmp_path / "file")


def test_good_json(tmp_path: Path) -> None:
    for text in ('{"a": [1]}', '\ufeff{"a": [1]}'):  # a BOM is harmless
        (tmp_path / "file").write_text(text, "utf-8")
        assert read_object(tmp_path / "file") == {"a": [1]}
    (tmp_path / "file").write_text("[1]")
    assert read_json(tmp_path / "file") == [1]
    with pytest.raises(CheckpointError, match="expected a JSON object, got list"):
        read_object(tmp_path / "file")
