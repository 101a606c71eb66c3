import gzip
import io
import os
import subprocess
from pathlib import Path

import pytest
import zstandard

from minibert import lines as lines_module
from minibert.lines import LONGEST, Lines, Position, survey

TEXT = "I am\r\n\n  a\u2028b ||| c\x0b\x85\nthe last".encode()
TEXTS = ["I am", "", "  a\u2028b ||| c\x0b\x85", "the last"]


def write(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain", TEXT),
        ("mark", b"\xef\xbb\xbf" + TEXT),
        ("whole.txt", TEXT + b"\n"),
        ("one.gz", gzip.compress(TEXT, mtime=0)),
        ("two.gz", gzip.compress(TEXT[:5], mtime=0) + gzip.compress(TEXT[5:], mtime=0)),
        ("one.zst", zstandard.compress(TEXT)),
        ("two.zst", zstandard.compress(TEXT[:5]) + zstandard.compress(TEXT[5:])),
    ],
)
def test_the_same_lines_in_every_wrapping(tmp_path: Path, name: str, content: bytes) -> None:
    assert list(Lines(write(tmp_path, name, content))) == TEXTS


@pytest.mark.parametrize("name", ["empty", "empty.gz", "empty.zst"])
def test_an_empty_file_has_no_line(tmp_path: Path, name: str) -> None:
    content = {
        "empty": b"",
        "empty.gz": gzip.compress(b"", mtime=0),
        "empty.zst": zstandard.compress(b""),
    }
    assert list(Lines(write(tmp_path, name, content[name]))) == []


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_lines_across_blocks(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "_BLOCK", block)
    monkeypatch.setattr(lines_module, "_ZST_BLOCK", block)
    for name, content in (
        ("plain", TEXT),
        ("a.gz", gzip.compress(TEXT, mtime=0)),
        ("a.zst", zstandard.compress(TEXT)),
    ):
        assert list(Lines(write(tmp_path, name, content))) == TEXTS


def test_a_field_of_json_lines(tmp_path: Path) -> None:
    name = write(tmp_path, "a.jsonl", b'{"id": 1, "body": "I\\nam"}\r\n{"body": ""}\n')
    assert list(Lines(name, "body")) == ["I\nam", ""]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"body": "a"}\n{"text": "a"}', "line 2 of .* is no JSON object with a text as 'body'"),
        (b'{"body": 3}', "line 1 of .* is no JSON object with a text as 'body'"),
        (b'["body"]', "line 1 of .* is no JSON object with a text as 'body'"),
        (b'{"body": "a"}\n\n', "line 2 of .* is not JSON"),
        (b'{"body": "\\ud800"}', "line 1 of .* not of whole characters"),
        (b"[" * 100_000, "line 1 of .* is not JSON"),
    ],
)
def test_what_is_no_such_json(tmp_path: Path, content: bytes, says: str) -> None:
    name = write(tmp_path, "a.jsonl", content)
    with pytest.raises(OSError, match=says):
        list(Lines(name, "body"))
    with pytest.raises(OSError, match=says):  # before any work is done
        survey(name, "body")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a", b"a\ncaf\xe9\n", "line 2 of .*/a is not UTF-8"),
        ("a.gz", gzip.compress(TEXT, mtime=0)[:-9], "cannot read .*/a.gz: .*end"),
        ("a.gz", TEXT, "cannot read .*/a.gz: Not a gzipped file"),
        ("a.gz", gzip.compress(TEXT * 99, mtime=0)[:50] + b"\xff" * 50, "cannot read .*/a.gz: "),
        ("a.zst", zstandard.compress(TEXT)[:-3], "cannot read .*/a.zst: it ends too early"),
        ("a.zst", TEXT, "cannot read .*/a.zst: "),
        ("a", b"a\n" + b"b" * (LONGEST + 1), "cannot read .*/a: line 2 has more than"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    with pytest.raises(OSError, match=says):
        list(Lines(write(tmp_path, name, content)))


def test_zst_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "zstandard", None)
    with pytest.raises(OSError, match="cannot read .*/a.zst: pip install zstandard"):
        Lines(write(tmp_path, "a.zst", zstandard.compress(TEXT)))
    assert list(Lines(write(tmp_path, "a.gz", gzip.compress(TEXT, mtime=0)))) == TEXTS


def test_what_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot read .*/none: No such file"):
        Lines(str(tmp_path / "none"))
    with pytest.raises(OSError, match="Is a directory"):
        Lines(str(tmp_path))


def test_skipping_to_a_position(tmp_path: Path) -> None:
    name = write(tmp_path, "a", TEXT)
    first = Lines(name)
    assert [next(iter(first)), next(iter(first))] == TEXTS[:2]
    position = first.position
    assert position[:2] == (2, 7)
    second = Lines(name)
    second.skip(position)
    assert list(second) == TEXTS[2:]
    assert second.position == survey(name) == Position(4, len(TEXT) + 1, second.position.sha256)
    for changed in (b"I am\n\n", b"I an\r\n\n", b"I am\r\n", b""):
        with pytest.raises(ValueError, match="a has changed: its first 2 lines are not those"):
            Lines(write(tmp_path, "a", changed)).skip(position)


def test_a_survey_reads_as_far_as_the_limit(tmp_path: Path) -> None:
    name = write(tmp_path, "a", b"a\nb\ncaf\xe9\n")
    position = survey(name, limit=2)
    assert position is not None
    assert position.lines == 2
    with pytest.raises(OSError, match="line 3"):
        survey(name, limit=3)


def test_pipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT)))
    assert survey("-") is None
    assert list(Lines("-")) == TEXTS
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert survey(str(pipe)) is None  # reading it would leave nothing for the work
    with subprocess.Popen(["sh", "-c", f"printf 'a\\nb' >{pipe}"]):
        assert list(Lines(str(pipe))) == ["a", "b"]
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(OSError, match="cannot read -: the input is closed"):
        Lines("-")
