"""Instances on the disk: all of them come back, in any order that can be asked for."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import load_file, save_file
from test_instances import PIECES

from minibert import instance_files
from minibert.config import CheckpointError
from minibert.instance_files import MANIFEST, Instances, write_instances
from minibert.instances import InstanceMaker, Recipe, blocks, read_documents, unigram_entropy
from minibert.tokenizer import WordPieceTokenizer

RECIPE = Recipe(max_length=32, copies=3)
FILES = 5


@pytest.fixture
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(PIECES, lowercase=True)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_files, "blocks", lambda documents: blocks(documents, 1000))


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Two files with 22 documents of 110 pieces each: FILES blocks of 1,000."""
    random = Random(0)
    names = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    for name in names:
        documents = []
        for _ in range(22):
            sentences = [" ".join(f"w{random.randrange(60)}" for _ in range(11)) for _ in range(10)]
            documents.append("".join(f"{sentence}\n" for sentence in sentences))
        Path(name).write_text("\n".join(documents))
    return names


Make = Callable[..., Instances]


@pytest.fixture
def make(texts: list[str], tokenizer: WordPieceTokenizer, tmp_path: Path) -> Make:
    def run(name: str = "made", recipe: Recipe = RECIPE, seed: int = 7) -> Instances:
        write_instances(texts, tokenizer, recipe, seed, tmp_path / name)
        return Instances(tmp_path / name)

    return run


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.usefixtures("small_blocks")
def test_all_come_back(make: Make, texts: list[str], tokenizer: WordPieceTokenizer) -> None:
    found = make()
    documents = read_documents(texts, tokenizer)
    maker = InstanceMaker(tokenizer, RECIPE)
    expected = [
        instance
        for number, block in enumerate(blocks(documents, 1000))
        for instance in maker.make(block, Random(7 + number))
    ]
    assert list(found) == expected
    assert len(found) == len(expected) > 300
    assert found.recipe == RECIPE
    assert found.tokenizer.vocabulary == tokenizer.vocabulary
    assert found.tokens == sum(len(i.input_ids) for i in expected)
    assert found.random_next == sum(i.is_random_next for i in expected)
    labels = Counter(label for i in expected for label in i.labels)
    assert found.to_predict == labels.total()
    assert found.unigram_entropy == pytest.approx(unigram_entropy([*labels.values()]), abs=1e-12)


@pytest.mark.usefixtures("small_blocks")
def test_the_format_is_the_one_that_is_described(make: Make, tmp_path: Path) -> None:
    make()
    stored = load_file(tmp_path / "made" / "instances-00000.safetensors")
    kinds = {name: array.dtype.str.strip("<|") for name, array in stored.items()}
    text = instance_files.__doc__ or ""
    for name, kind in kinds.items():
        assert f"    {name} " in text
        row = next(line for line in text.splitlines() if line.startswith(f"    {name} "))
        assert row.split()[1] == {"i8": "I64", "i4": "I32", "u1": "U8"}[kind]
    assert len(kinds) == 7
    names = {path.name for path in (tmp_path / "made").iterdir()}
    files = {f"instances-{number:05}.safetensors" for number in range(FILES)}
    assert names == {"vocab.txt", "tokenizer_config.json", MANIFEST, *files}


@pytest.mark.usefixtures("small_blocks")
def test_shuffled_from_any_number(make: Make) -> None:
    found = make()
    whole = list(islice(found.shuffled(1), 2 * len(found)))
    first, second = whole[: len(found)], whole[len(found) :]
    assert Counter(map(repr, first)) == Counter(map(repr, second)) == Counter(map(repr, found))
    assert first != second
    assert first != list(found)
    assert list(islice(found.shuffled(2), len(found))) != first
    for name in (f"instances-{number:05}.safetensors" for number in range(FILES)):
        inside = {repr(i) for i in found._read(name, range(20))}
        one, other = ([repr(i) for i in part if repr(i) in inside] for part in (first, second))
        assert one != other  # the files change places, and so do the instances of each
    for begin in (0, 1, 17, 99, len(found) - 1, len(found), len(found) + 50):
        assert list(islice(found.shuffled(1, begin), 40)) == whole[begin : begin + 40]


@pytest.mark.usefixtures("small_blocks")
def test_what_is_there_is_not_made_again(make: Make, tmp_path: Path) -> None:
    make()
    folder = tmp_path / "made"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    make()
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.usefixtures("small_blocks")
def test_half_a_folder_is_completed(make: Make, tmp_path: Path) -> None:
    make()
    folder = tmp_path / "made"
    complete = digests(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "complete": False}))
    (folder / "instances-00003.safetensors").unlink()
    (folder / "instances-00003.safetensors.tmp").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="is not complete; make its instances once more"):
        Instances(folder)
    make()
    assert digests(folder) == complete


KILLED = """
import sys
from random import Random
from minibert import instance_files
from minibert.instances import Recipe, blocks
from minibert.hub import load_tokenizer
from pathlib import Path
instance_files.blocks = lambda documents: blocks(documents, 1000)
texts, tokenizer, folder = sys.argv[1:3], load_tokenizer(sys.argv[3]), Path(sys.argv[4])
print("ready", flush=True)
instance_files.write_instances(texts, tokenizer, Recipe(max_length=32, copies=30), 7, folder)
"""


@pytest.mark.usefixtures("small_blocks")
def test_killed_and_begun_again(
    make: Make, texts: list[str], tokenizer: WordPieceTokenizer, tmp_path: Path
) -> None:
    recipe = Recipe(max_length=32, copies=30)
    make("undisturbed", recipe)
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, *texts, str(tmp_path / "undisturbed"), str(folder)]
    for files in (1, 2, 4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        while len(list(folder.glob("*.safetensors"))) < files and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(list(folder.glob("*.safetensors"))) >= 4
    write_instances(texts, tokenizer, recipe, 7, folder)
    assert digests(folder) == digests(tmp_path / "undisturbed")


def test_other_texts_or_another_recipe_are_refused(
    make: Make, texts: list[str], tmp_path: Path
) -> None:
    make()
    before = digests(tmp_path / "made")
    with pytest.raises(ValueError, match="with another seed: 7, not 8; take a new folder"):
        make(seed=8)
    with pytest.raises(ValueError, match="with another recipe"):
        make(recipe=Recipe())
    with Path(texts[0]).open("a") as file:
        file.write("w1\n")
    with pytest.raises(ValueError, match="with another texts"):
        make()
    assert digests(tmp_path / "made") == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is no sentence in"),
        (b"\n \r\n\n", "there is no sentence in"),
        (b"w1\nw2\nw3", "have 1 document, .* put a blank line between documents"),
        (b"w1\n\nw2\xff", "line 3 of .* is not UTF-8"),
    ],
)
def test_texts_that_give_nothing(
    content: bytes, message: str, tokenizer: WordPieceTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        write_instances([str(tmp_path / "text")], tokenizer, RECIPE, 0, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    with pytest.raises(ValueError, match="is no file"):
        write_instances([str(tmp_path)], tokenizer, RECIPE, 0, tmp_path / "made")


def test_a_folder_of_other_things_is_left_alone(make: Make, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "thesis.tex").write_text("all of it")
    with pytest.raises(ValueError, match=r"has thesis\.tex, and no instances\.json"):
        make()


def test_broken_files(make: Make, tmp_path: Path) -> None:
    found = make()
    path = tmp_path / "made" / "instances-00000.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(CheckpointError, match=r"00000\.safetensors is broken .* make its folder"):
        list(found)
    save_file({"vectors": np.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="has no instances"):
        list(found)
    path.unlink()
    with pytest.raises(CheckpointError, match="is broken"):
        list(found)
    (tmp_path / "made" / MANIFEST).write_text('{"format": "something else"}')
    with pytest.raises(CheckpointError, match="not what minibert writes"):
        Instances(tmp_path / "made")
    with pytest.raises(CheckpointError, match=r"cannot read .*instances\.json"):
        Instances(tmp_path)


@pytest.mark.usefixtures("small_blocks")
def test_a_full_disk(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(instance_files, "to_disk", full)
        with pytest.raises(CheckpointError, match="cannot write .*: No space left on device"):
            make()
    make()
    assert len(list((tmp_path / "made").glob("*.safetensors"))) == FILES


@pytest.mark.usefixtures("small_blocks")
def test_memory_does_not_grow_with_the_texts(
    texts: list[str], tokenizer: WordPieceTokenizer, tmp_path: Path
) -> None:
    peaks = []
    for times in (1, 1, 8):  # the first one warms up
        names = texts * times
        tracemalloc.start()
        write_instances(names, tokenizer, RECIPE, 0, tmp_path / f"{len(peaks)}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(Instances(tmp_path / "2")) > 7 * len(Instances(tmp_path / "1"))
    assert peaks[2] < 1.3 * peaks[1]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("left", [(), ("vocab.txt",), ("vocab.txt", "tokenizer_config.json")])
def test_killed_right_at_the_beginning(left: tuple[str, ...], make: Make, tmp_path: Path) -> None:
    make("whole")
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / f"{MANIFEST}.tmp").write_text("{")
    if left:  # the manifest came first
        manifest = json.loads((tmp_path / "whole" / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**manifest, "complete": False}))
    for name in left:
        (folder / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    make()
    assert digests(folder) == digests(tmp_path / "whole")
