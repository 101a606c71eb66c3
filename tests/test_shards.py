"""The formats as another language would read them, with nothing of minibert."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from minibert import shards
from minibert.config import CheckpointError
from minibert.shards import JsonWriter, NpyWriter, ShardWriter
from minibert.vectors import Vectors, join

H = 5


def text(rows: int, seed: int, layers: tuple[int, ...] = ()) -> Vectors:
    numbers = np.random.default_rng(seed).normal(size=(rows, *layers, H)).astype(np.float32)
    offsets = [(n, n + 2) for n in range(rows)]
    return Vectors(numbers, [f"ü{n}" for n in range(rows)], offsets, [1] * rows, [0, rows])


TEXTS = [text(3, 0), text(0, 1), text(1, 2)]


@pytest.mark.parametrize(("dtype", "code"), [("float32", "f"), ("float16", "e")])
def test_a_shard_byte_by_byte(tmp_path: Path, dtype: str, code: str) -> None:
    files: list[dict[str, Any]] = []
    writer = ShardWriter(tmp_path, (H,), dtype, files)
    writer.begin(8, join(TEXTS))
    for number in (2, 0, 1):  # longest first, or whatever order
        writer.put(number, TEXTS[number])
    assert list(tmp_path.glob("*.safetensors")) == []  # not until it is complete
    writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["vectors-00000.safetensors"]
    content = (tmp_path / "vectors-00000.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    found = {}
    for name, letter in (
        ("starts", "q"),
        ("token_starts", "q"),
        ("offsets", "i"),
        ("vectors", code),
        ("segments", "B"),
        ("tokens", "B"),
    ):
        begin, end = header[name]["data_offsets"]
        count = (end - begin) // struct.calcsize(letter)
        assert (8 + size + begin) % struct.calcsize(letter) == 0  # can be mapped in place
        found[name] = list(struct.unpack(f"<{count}{letter}", data[begin:end]))
    assert found["starts"] == [0, 3, 3, 4]
    assert found["token_starts"] == [0, 3, 6, 9, 12]
    assert found["offsets"] == [0, 2, 1, 3, 2, 4, 0, 2]
    assert bytes(found["tokens"]).decode() == "ü0ü1ü2ü0"
    assert found["segments"] == [1] * 4
    assert header["vectors"]["shape"] == [4, H]
    expected = np.concatenate([one.vectors for one in TEXTS]).astype(dtype)
    assert found["vectors"] == expected.ravel().tolist()
    counts = {"first": 8, "texts": 3, "rows": 4, "bytes": len(content)}
    assert files == [{"file": "vectors-00000.safetensors", **counts}]


def test_bfloat16_and_layers(tmp_path: Path) -> None:
    texts = [text(2, 0, (3,)), text(1, 1, (3,))]
    writer = ShardWriter(tmp_path, (3, H), "bfloat16", [])
    writer.begin(0, join(texts))
    for number in (0, 1):
        writer.put(number, texts[number])
    writer.finish()
    with safe_open(tmp_path / "vectors-00000.safetensors", framework="pt") as file:
        stored = file.get_tensor("vectors")
        assert file.metadata() == {"format": "minibert vectors 1"}
    expected = torch.from_numpy(join(texts).vectors).to(torch.bfloat16)  # to the nearest
    assert torch.equal(stored, expected)


def test_an_array_can_be_mapped_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    rows = [text(1, seed) for seed in range(3)]
    writer = NpyWriter(path, (H,), "float32", [])
    assert np.load(path).shape == (0, H)
    writer.begin(0, join(rows[:2]))
    writer.put(1, rows[1])
    assert np.load(path).shape == (0, H)  # what is not complete is not counted
    writer.put(0, rows[0])
    writer.finish()
    mapped = np.load(path, mmap_mode="r")
    writer.begin(2, join(rows[2:]))
    writer.put(0, rows[2])
    writer.finish()
    writer.close()
    np.testing.assert_array_equal(mapped, join(rows[:2]).vectors)
    np.testing.assert_array_equal(np.load(path, mmap_mode="r"), join(rows).vectors)
    assert path.stat().st_size == 128 + 3 * H * 4


@pytest.mark.parametrize(
    ("dtype", "value"), [("float16", 65520.0), ("bfloat16", 3.4e38), ("float32", np.nan)]
)
def test_numbers_that_do_not_fit(tmp_path: Path, dtype: str, value: float) -> None:
    broken = Vectors(np.full((1, H), value, np.float32), ["a"], [(0, 1)], [0], [0, 1])
    writer = ShardWriter(tmp_path, (H,), dtype, [])
    writer.begin(4, broken)
    with pytest.raises(ValueError, match=f"line 5: a vector is not finite as {dtype}"):
        writer.put(0, broken)
    writer.close()


def test_json_lines_come_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    files: list[dict[str, Any]] = []
    writer = JsonWriter(path, [-1], files)
    writer.begin(0, join(TEXTS))
    for number in (2, 0, 1):
        writer.put(number, TEXTS[number])
    writer.finish()
    writer.close()
    lines = path.read_text().splitlines()
    assert [json.loads(line)["linex_index"] for line in lines] == [0, 1, 2]
    assert json.loads(lines[1])["features"] == []
    with path.open("a") as file:
        file.write("half a line")
    JsonWriter(path, [-1], files).close()  # as after an interruption
    assert path.read_text().splitlines() == lines


def test_what_lost_bytes_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12")
    for writer in (
        lambda files: JsonWriter(tmp_path / "a", [-1], files),
        lambda files: NpyWriter(tmp_path / "a", (H,), "float32", files),
        lambda files: ShardWriter(tmp_path, (H,), "float32", files),
    ):
        with pytest.raises(CheckpointError, match="a has 2 bytes, not the 3 of its manifest; --ov"):
            writer([{"file": "a", "texts": 1, "bytes": 3}])
    with pytest.raises(CheckpointError, match="b has 0 bytes, not the 3"):
        ShardWriter(tmp_path, (H,), "float32", [{"file": "b", "bytes": 3}])


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = ShardWriter(tmp_path, (H,), "float32", [])
    with pytest.raises(OSError, match="cannot write .*: another process is writing it"):
        ShardWriter(tmp_path, (H,), "float32", [])
    folder.close()
    ShardWriter(tmp_path, (H,), "float32", []).close()
    files: list[dict[str, Any]] = []
    file = NpyWriter(tmp_path / "a", (H,), "float32", files)
    with pytest.raises(OSError, match="cannot write .*/a: another process is writing it"):
        NpyWriter(tmp_path / "a", (H,), "float32", [])
    assert (tmp_path / "a").stat().st_size == 128  # and was not touched
    file.close()
    NpyWriter(tmp_path / "a", (H,), "float32", files).close()


def test_a_small_file_is_replaced_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    shards.replace(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: pytest.fail("here the process dies"))
        with pytest.raises(pytest.fail.Exception):
            shards.replace(path, b"new")
    assert path.read_text() == "old"
    shards.replace(path, b"newer")
    assert path.read_text() == "newer"


def test_an_output_goes_where_a_link_or_pipe_leads(tmp_path: Path) -> None:
    """Put in their place, a file would be lost on whoever reads them; /dev/null is one of them."""
    plain, link, ahead, pipe = (tmp_path / name for name in ("plain", "link", "ahead", "pipe"))
    plain.write_text("old")
    link.symlink_to(plain)
    ahead.symlink_to(tmp_path / "none yet")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for path in (link, ahead, pipe):
        shards.write_output(path, b"new")
    assert plain.read_text() == (tmp_path / "none yet").read_text() == "new"
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    assert link.is_symlink()
    assert ahead.is_symlink()
    assert pipe.is_fifo()
    with pytest.raises(OSError, match=f"cannot write {tmp_path}: Is a directory"):
        shards.write_output(tmp_path, b"new")
    with pytest.raises(OSError, match="cannot write .*/no/file: No such file or directory"):
        shards.write_output(tmp_path / "no" / "file", b"new")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("plain", "link", "ahead", "none yet", "pipe")
    }
