import json
import logging
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import ODD, PIECES, random_model

import minibert
from minibert import blocks
from minibert.bert import Bert
from minibert.config import CheckpointError
from minibert.extract import extract_file
from minibert.job import Job
from minibert.stored import read_vectors
from minibert.tokenizer import WordPieceTokenizer
from minibert.vectors import Reading

LINES = ["I am the walrus.", "", "a ||| b b", "Wälrus 中", "a", "b a b"]


@pytest.fixture
def bert(monkeypatch: pytest.MonkeyPatch) -> Bert:
    monkeypatch.setattr(blocks, "BLOCK_LINES", 2)
    return Bert(ODD, WordPieceTokenizer(PIECES, lowercase=True), random_model(ODD))


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text").write_text("\n".join(LINES), "utf-8")
    return str(tmp_path / "text")


def pairs() -> list[str | tuple[str, str]]:
    return [("a", "b b") if "|" in line else line for line in LINES]


@pytest.mark.parametrize(
    ("reading", "dtype", "within"),
    [
        (Reading(), "float32", 0.0),
        (Reading(), "float16", 2**-10),
        (Reading(), "bfloat16", 2**-8),
        (Reading([0, -1], "stack", special_tokens=False), "float32", 0.0),
        (Reading("all", "concat", unit="word"), "float32", 0.0),
        (Reading(unit="sentence", normalize=True), "float32", 0.0),
    ],
)
def test_shards(
    bert: Bert, text: str, tmp_path: Path, reading: Reading, dtype: str, within: float
) -> None:
    extract_file(bert, Job(text, str(tmp_path / "out"), reading, store_dtype=dtype))
    stored = minibert.read_vectors(tmp_path / "out")
    assert (len(stored), stored.is_complete) == (6, True)
    expected = bert.vectors(pairs(), **vars(reading))
    for number, one in enumerate(stored):
        like = expected[number]
        assert one.tokens == like.tokens
        assert one.offsets == like.offsets
        assert one.segments == like.segments
        assert one.vectors.dtype == np.float32
        assert one.vectors.shape == like.vectors.shape
        # Batches of another size move the last bits; 5e-7 is what that does here, by far.
        np.testing.assert_allclose(one.vectors, like.vectors, rtol=within, atol=5e-6)
    if reading.unit == "word":
        assert stored[1].vectors.shape == (0, 99)  # nothing is of an empty line, but it is there


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_array(bert: Bert, text: str, tmp_path: Path, dtype: str) -> None:
    reading = Reading([-1, -2], "stack", "sentence")
    extract_file(bert, Job(text, str(tmp_path / "out.npy"), reading, store_dtype=dtype))
    array = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert array.dtype == dtype
    assert array.shape == (6, 2, 33)
    expected = bert.vectors(pairs(), [-1, -2], "stack", "sentence").vectors
    np.testing.assert_allclose(array, expected, atol=5e-6, rtol=2**-10 if "16" in dtype else 0)
    stored = read_vectors(tmp_path / "out.npy")
    assert len(stored) == 6
    np.testing.assert_array_equal(stored[3].vectors, array[3:4].astype(np.float32))
    assert stored[3][1:] == (None, None, None)


def test_json_lines(bert: Bert, text: str, tmp_path: Path) -> None:
    for layers in ([-1, 0], [2]):
        target = tmp_path / f"{len(layers)}.jsonl"
        extract_file(bert, Job(text, str(target), Reading(layers, "stack")))
        expected = bert.vectors(pairs(), layers, "stack" if len(layers) > 1 else "sum")
        stored = read_vectors(target)
        assert len(stored) == 6
        for number in (5, 0, 3, 1):
            assert stored[number].tokens == expected[number].tokens
            like = expected[number].vectors
            np.testing.assert_allclose(stored[number].vectors, like, atol=5.1e-7 + 5e-6)


def test_what_is_asked_beyond_the_end(bert: Bert, text: str, tmp_path: Path) -> None:
    extract_file(bert, Job(text, str(tmp_path / "out")))
    for number in (6, -1):
        with pytest.raises(IndexError, match=f"there is no text {number}: there are 6"):
            read_vectors(tmp_path / "out")[number]


def test_what_is_not_complete_is_told(
    bert: Bert, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("out", "out.npy", "out.jsonl"):
        extract_file(bert, Job(text, str(tmp_path / name), Reading(unit="sentence")))
        manifest = tmp_path / (
            f"{name}/manifest.json" if name == "out" else f"{name}.manifest.json"
        )
        told = json.loads(manifest.read_text())
        told["complete"] = False
        if name == "out":
            told["files"].pop()
        manifest.write_text(json.dumps(told))
        with caplog.at_level(logging.WARNING):
            stored = read_vectors(tmp_path / name)
        assert not stored.is_complete
        count = 4 if name == "out" else 6
        assert f"{name} is not complete yet: it has the first {count} texts" in caplog.text


def test_what_was_killed_before_it_began_has_no_texts(
    bert: Bert, text: str, tmp_path: Path
) -> None:
    with (
        mock.patch("minibert.shards._open_at", side_effect=MemoryError),
        pytest.raises(MemoryError),
    ):
        extract_file(bert, Job(text, str(tmp_path / "out.npy"), Reading(unit="sentence")))
    stored = read_vectors(tmp_path / "out.npy")
    assert (len(stored), stored.is_complete) == (0, False)


def test_lines_that_are_written_just_now_do_not_count(
    bert: Bert, text: str, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    extract_file(bert, Job(text, str(target)))
    with target.open("a") as file:
        file.write('{"linex_index": 6, "feat')
    assert len(read_vectors(target)) == 6


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none", None, "No such file"),
        ("folder", None, "it has no manifest.json"),
        ("torn.jsonl", b'{"linex_index": 0, "fea', "its last line does not end"),
        ("a.npy", b"\x93NUMPY\x01\x00v\x00" + b" " * 118, "cannot read vectors from .*a.npy"),
    ],
)
def test_what_is_no_such_file(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    elif name == "folder":
        (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=says):
        read_vectors(tmp_path / name)


def test_broken_parts_are_told_when_they_are_read(bert: Bert, text: str, tmp_path: Path) -> None:
    extract_file(bert, Job(text, str(tmp_path / "out")))
    (tmp_path / "out" / "vectors-00001.safetensors").write_bytes(b"nothing")
    stored = read_vectors(tmp_path / "out")
    assert stored[1].tokens == ["[CLS]", "[SEP]"]
    with pytest.raises(CheckpointError, match="vectors-00001.safetensors is missing or broken"):
        stored[2]
    (tmp_path / "a.jsonl").write_text('{"linex_index": 0, "features": []}\n{}\n')
    assert len(read_vectors(tmp_path / "a.jsonl")) == 2
    with pytest.raises(CheckpointError, match="line 2 of .*a.jsonl is not Google's JSON"):
        read_vectors(tmp_path / "a.jsonl")[1]
