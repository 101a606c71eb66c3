import ctypes
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run_python

from minibert.config import CheckpointError
from minibert.files import is_file, looks_like, read_bytes, read_json, read_object, write_folder


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


NAMES = ["one", "two"]


def fill(text: str) -> Callable[[Path], None]:
    def write(draft: Path) -> None:
        for name in NAMES:
            (draft / name).write_text(text)

    return write


def content(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in sorted(os.listdir(folder))]


def test_a_folder_is_written_and_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    for text in ("old", "new"):
        write_folder(folder, NAMES, fill(text))
        assert content(folder) == [text, text]
        assert os.listdir(folder.parent) == ["b"], "something was left behind"
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", NAMES, fill("new"))
    (tmp_path / "link").symlink_to(folder)
    write_folder(tmp_path / "link", NAMES, fill("newer"))
    assert (tmp_path / "link").is_symlink()
    assert content(folder) == ["newer", "newer"]


def test_other_files_are_not_lost(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("words")
    with pytest.raises(ValueError, match="also has thesis, which would be lost; take a new folder"):
        write_folder(tmp_path, NAMES, fill("new"))
    with pytest.raises(ValueError, match="thesis is a file; give the name of a folder"):
        write_folder(tmp_path / "thesis", NAMES, fill("new"))
    assert os.listdir(tmp_path) == ["thesis"]


def test_files_in_folders_of_a_folder(tmp_path: Path) -> None:
    def write(draft: Path) -> None:
        (draft / "in").mkdir()
        (draft / "in" / "one").write_text("new")

    folder = tmp_path / "folder"
    write_folder(folder, ["in/one"], write)
    write_folder(folder, ["in/one"], write)
    assert (folder / "in" / "one").read_text() == "new"
    (folder / "in" / "thesis").write_text("words")
    with pytest.raises(ValueError, match="also has in/thesis, which would be lost"):
        write_folder(folder, ["in/one"], write)
    assert (folder / "in" / "thesis").read_text() == "words"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("two")])
def test_what_only_has_the_name_of_a_file_is_not_lost(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, NAMES, fill("old"))
    (folder / "one").unlink()
    make(folder / "one")
    with pytest.raises(ValueError, match="folder also has one, which would be lost"):
        write_folder(folder, NAMES, fill("new"))
    assert (folder / "two").read_text() == "old"


def test_the_folder_has_the_usual_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "folder", NAMES, fill("new"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


@pytest.mark.parametrize("there", [False, True])
def test_what_fails_leaves_the_old_folder(tmp_path: Path, there: bool) -> None:
    if there:
        write_folder(tmp_path / "folder", NAMES, fill("old"))

    def fail(draft: Path) -> None:
        (draft / "one").write_text("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="cannot write .*folder: No space left on device"):
        write_folder(tmp_path / "folder", NAMES, fail)
    assert os.listdir(tmp_path) == (["folder"] if there else [])
    assert not there or content(tmp_path / "folder") == ["old", "old"]


def test_where_folders_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "folder", NAMES, fill("old"))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(CheckpointError, match=r"replaced in one step \(not on this system\); take"):
        write_folder(tmp_path / "folder", NAMES, fill("new"))
    assert content(tmp_path / "folder") == ["old", "old"]
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("there", [False, True])
def test_a_crash_at_any_moment_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, there: bool
) -> None:
    """The process kills itself at the first, second, ... line that write_folder and fill run."""
    code = f"""
import os, shutil, signal, sys
from pathlib import Path
from minibert import files

def fill(draft):
    for name in ("one", "two"):
        (draft / name).write_text("new")

def count(frame, event, _):
    global left
    if frame.f_code.co_filename not in (files.__file__, shutil.__file__, "<string>"):
        return None
    left -= event == "line"
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return count

folders = Path({str(tmp_path)!r})
for moment in range(1, 1000):
    folder = folders / str(moment) / "folder"
    folder.parent.mkdir()
    if {there}:
        files.write_folder(folder, ["one", "two"], fill)
        for name in ("one", "two"):
            (folder / name).write_text("old")
    left = moment
    child = os.fork()
    if not child:
        sys.settrace(count)
        files.write_folder(folder, ["one", "two"], fill)
        sys.settrace(None)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(moment)
"""
    result = run_python(code)
    assert (result.returncode, result.stderr) == (0, "")
    moments = int(result.stdout)
    assert moments > 20
    left = [tmp_path / str(moment) / "folder" for moment in range(1, moments + 1)]
    states = [content(folder) if folder.exists() else [] for folder in left]
    old = ["old", "old"] if there else []
    assert states == [old] * states.count(old) + [["new", "new"]] * states.count(["new", "new"])
    assert old in states[:-1]
    assert ["new", "new"] in states[:-1]
