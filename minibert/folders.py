"""Writing a folder so that it is whole or not there, whatever happens: `write_folder`.

Read next: saving.py.
"""

import ctypes
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from minibert.config import CheckpointError


def write_folder(folder: Path, names: Collection[str], fill: Callable[[Path], None]) -> None:
    """Write files into a folder, all of them at once: a crash leaves the old folder or the new one.

    Args:
        folder: need not exist. If it does, it may hold nothing but an earlier set of the files.
        names: of the files that there may be; "a/b" is one in a folder of the folder.
        fill: writes them into an empty folder.

    Raises:
        ValueError: if there is something else in the folder, which would be lost, or it is one that
            cannot be replaced.
        CheckpointError: if the files cannot be written; the folder is as it was.
    """
    try:
        folder = folder.resolve()
        _check_replaceable(folder, names)
        _remove_old_drafts(folder)
        draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
        try:
            draft.mkdir(parents=True)
            fill(draft)
            _check_replaceable(folder, names)  # again, since that took its time
            paths = [*draft.rglob("*"), draft]
            if folder.exists():
                _take_after(paths, folder.stat())
            for path in paths:
                _to_disk(path)
            if folder.exists() and any(folder.iterdir()):
                _exchange(draft, folder)
            else:
                draft.replace(folder)
            _to_disk(folder.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)  # what was not finished, or was replaced
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, in Python < 3.13
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write {folder}: {reason}") from error


def _check_replaceable(folder: Path, names: Collection[str]) -> None:
    """Raise a ValueError if a folder is there that cannot make room for a set of files."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the name of a folder")
    kind = "the working directory" if Path().samefile(folder) else ""
    kind = "a mount point" if os.path.ismount(folder) else kind
    if kind:
        raise ValueError(f"{folder} is {kind}, which cannot be replaced; take a folder in it")
    if other := _other(folder, names):
        name = other.relative_to(folder)
        raise ValueError(f"{folder} also has {name}, which would be lost; take a new folder")


def _remove_old_drafts(folder: Path) -> None:
    """Remove what programs left that were killed a day ago or earlier."""
    draft = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.tmp")
    yesterday = time.time() - 86400
    with suppress(OSError):
        for path in folder.parent.iterdir():
            if draft.fullmatch(path.name) and path.lstat().st_mtime < yesterday:
                shutil.rmtree(path, ignore_errors=True)


def _take_after(paths: Iterable[Path], old: os.stat_result) -> None:
    """Give files, and last their folder, the owner of another folder; and the folder its mode."""
    for path in paths:
        with suppress(PermissionError, AttributeError):  # not root; not a system with owners
            os.chown(path, old.st_uid, old.st_gid, follow_symlinks=False)
    path.chmod(stat.S_IMODE(old.st_mode))


def _other(folder: Path, names: Collection[str]) -> Path | None:
    """The first thing in a folder that is none of the files, if there is one."""
    for path in sorted(folder.iterdir()):
        start = f"{path.name}/"
        inside = [name.removeprefix(start) for name in names if name.startswith(start)]
        mode = path.lstat().st_mode
        if inside and stat.S_ISDIR(mode):
            if other := _other(path, inside):
                return other
        elif not (path.name in names and stat.S_ISREG(mode)):
            return path
    return None


def _to_disk(path: Path) -> None:
    """Wait until a file or folder would outlive a power cut."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change names in one step, which Python has no function for.

    Source: Linux's renameat2(2), flag RENAME_EXCHANGE.
    """
    here, exchange = -100, 2
    library = ctypes.CDLL(None, use_errno=True)
    rename = getattr(library, "renameat2", None)
    if rename is None or rename(here, bytes(one), here, bytes(other), exchange) != 0:
        reason = os.strerror(ctypes.get_errno()) if rename else "not on this system"
        raise OSError(f"it cannot be replaced in one step ({reason}); take a new folder")
