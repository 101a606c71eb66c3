import ctypes
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run_python

from minibert.config import CheckpointError
from minibert.folders import write_folder

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


def test_a_folder_that_is_replaced_keeps_its_mode_and_owner(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, NAMES, fill("old"))
    folder.chmod(0o2770)
    if os.geteuid() == 0:
        os.chown(folder, 12345, 23456)
    before = folder.stat()
    write_folder(folder, NAMES, fill("new"))
    assert content(folder) == ["new", "new"]
    for path in (folder, folder / "one"):
        assert (path.stat().st_uid, path.stat().st_gid) == (before.st_uid, before.st_gid)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o2770


def test_the_working_directory_is_not_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is the working directory, .*; take a folder in it"):
        write_folder(Path(), NAMES, fill("new"))
    write_folder(Path("folder"), NAMES, fill("new"))
    assert content(tmp_path / "folder") == ["new", "new"]


def test_a_mount_point_cannot_be_replaced() -> None:
    with pytest.raises(ValueError, match="^/ is a mount point, .*; take a folder in it"):
        write_folder(Path("/"), NAMES, fill("new"))


@pytest.mark.parametrize("name", ["loop", "n" * 300, "n" * 250])
def test_names_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match=r"^cannot write .*: (\[Errno \d+\] )?\w+"):
        write_folder(tmp_path / name, NAMES, fill("new"))


def test_what_killed_programs_left_is_removed_after_a_day(tmp_path: Path) -> None:
    drafts = {name: tmp_path / name for name in (".a.01234567.tmp", ".a.0.tmp", ".b.01234567.tmp")}
    for path in drafts.values():
        path.mkdir()
        fill("cut")(path)
    write_folder(tmp_path / "a", NAMES, fill("new"))
    assert sorted(os.listdir(tmp_path)) == [*sorted(drafts), "a"]
    for path in drafts.values():
        os.utime(path, (0, 0))
    write_folder(tmp_path / "a", NAMES, fill("new"))
    assert sorted(os.listdir(tmp_path)) == [".a.0.tmp", ".b.01234567.tmp", "a"]


def test_what_comes_in_between(tmp_path: Path) -> None:
    """Of two that write the same files the later one stays; other files are not lost even then."""
    folder = tmp_path / "folder"

    def write_and_be_overtaken(draft: Path) -> None:
        fill("late")(draft)
        write_folder(folder, NAMES, fill("early"))

    write_folder(folder, NAMES, write_and_be_overtaken)
    assert content(folder) == ["late", "late"]

    def write_and_be_joined(draft: Path) -> None:
        fill("new")(draft)
        (folder / "thesis").write_text("words")

    with pytest.raises(ValueError, match="also has thesis, which would be lost"):
        write_folder(folder, NAMES, write_and_be_joined)
    assert content(folder) == ["late", "words", "late"]
    assert os.listdir(tmp_path) == ["folder"]


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
from minibert import folders

def fill(draft):
    for name in ("one", "two"):
        (draft / name).write_text("new")

def count(frame, event, _):
    global left
    if frame.f_code.co_filename not in (folders.__file__, shutil.__file__, "<string>"):
        return None
    left -= event == "line"
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return count

places = Path({str(tmp_path)!r})
for moment in range(1, 1000):
    folder = places / str(moment) / "folder"
    folder.parent.mkdir()
    if {there}:
        folders.write_folder(folder, ["one", "two"], fill)
        for name in ("one", "two"):
            (folder / name).write_text("old")
    left = moment
    child = os.fork()
    if not child:
        sys.settrace(count)
        folders.write_folder(folder, ["one", "two"], fill)
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
