import itertools
import json
import math
import os
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ODD, random_model, run_python, write_folder
from safetensors.torch import load_file, save_file
from torch import Tensor

from minibert.checkpoint import load_model
from minibert.config import CheckpointError
from minibert.loading import load
from minibert.model import BertModel
from minibert.saving import save

reads_pickles = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10),
    reason="pickles are read from torch 2.10 on",
)
SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
INDEX = f"{SAFETENSORS}.index.json"


def same(first: BertModel, second: BertModel) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def take(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder, which loses them."""
    tensors = load_file(folder / SAFETENSORS)
    (folder / SAFETENSORS).unlink()
    return tensors


def to_pickle(folder: Path, **how: object) -> Path:
    torch.save(take(folder), folder / PICKLE, **how)  # type: ignore[arg-type]
    return folder / PICKLE


def to_shards(folder: Path, count: int = 3, kind: str = SAFETENSORS) -> dict[str, str]:
    """Spread the weights over files, as transformers does; gives the weight_map."""
    tensors = take(folder)
    stem, _, ending = kind.rpartition(".")
    places = {}
    for number in range(count):
        name = f"{stem}-{number + 1:05}-of-{count:05}.{ending}"
        part = dict(list(tensors.items())[number::count])
        if kind == SAFETENSORS:
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
        places |= dict.fromkeys(part, name)
    write_index(folder, places, kind)
    return places


def write_index(folder: Path, places: object, kind: str = SAFETENSORS) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{kind}.index.json").write_text(json.dumps(index))


def test_shards(folder: Path) -> None:
    to_shards(folder)
    assert same(load_model(folder), random_model(ODD))
    source = load(folder).source
    assert source is not None
    assert sum(name.endswith(".safetensors") for name in source.files) == 3


def test_shards_as_transformers_writes_them(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(folder)
    (folder / SAFETENSORS).unlink()
    theirs.save_pretrained(folder, max_shard_size="30kB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert same(load_model(folder), random_model(ODD))


def test_shards_of_a_snapshot_in_the_cache(folder: Path, tmp_path: Path) -> None:
    """A folder of the Hub's cache, given as a folder: its files are links to blobs."""
    to_shards(folder)
    model = tmp_path / "models--a--b"
    snapshot = model / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for path in folder.iterdir():
        path.rename(model / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert same(load_model(snapshot), random_model(ODD))


@reads_pickles
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_if_it_is_allowed(folder: Path, zipped: bool) -> None:
    to_pickle(folder, _use_new_zipfile_serialization=zipped)
    says = (
        f"has no file {SAFETENSORS}, only {PICKLE}: a pickle, which is a program; "
        "allow_pickle=True or --allow-pickle reads its tensors alone, and minibert.save then conv"
    )
    for call in (load, load_model):
        with pytest.raises(CheckpointError, match=says):
            call(folder)
    assert same(load_model(folder, allow_pickle=True), random_model(ODD))
    save(load(folder, allow_pickle=True), folder.parent / "converted")
    assert same(load_model(folder.parent / "converted"), random_model(ODD))


@reads_pickles
def test_a_pickle_in_shards(folder: Path) -> None:
    to_shards(folder, kind=PICKLE)
    with pytest.raises(CheckpointError, match=f"only {PICKLE}.index.json: a pickle"):
        load_model(folder)
    assert same(load_model(folder, allow_pickle=True), random_model(ODD))


@reads_pickles
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_a_pickle_of_another_dtype(tmp_path: Path, stored: torch.dtype) -> None:
    model = random_model(ODD, stored)
    to_pickle(write_folder(tmp_path, model, prefix="bert."))
    assert same(load_model(tmp_path, allow_pickle=True), model.float())


@reads_pickles
def test_safetensors_are_preferred(folder: Path) -> None:
    (folder / PICKLE).write_bytes(b"never looked at")
    assert same(load_model(folder, allow_pickle=True), random_model(ODD))


def test_an_older_torch_reads_no_pickle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_pickle(folder)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    monkeypatch.setattr(torch, "load", None)
    says = "is a pickle, which is safe to read from torch 2.10 on; this is 2.9.1"
    with pytest.raises(CheckpointError, match=says):
        load_model(folder, allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bert_model.ckpt.index", "TensorFlow's; scripts/convert_tf_checkpoint.py converts it"),
        ("tf_model.h5", "which transformers 4 converts; minibert does not"),
        ("flax_model.msgpack", "which transformers 4 converts; minibert does not"),
        ("model.onnx", "a program for other software"),
        ("README.md", None),
    ],
)
def test_weights_of_other_kinds(folder: Path, name: str, says: str | None) -> None:
    (folder / SAFETENSORS).rename(folder / name)
    expected = f"has no file {SAFETENSORS}" + (f", only {name}, {says}" if says else "")
    with pytest.raises(CheckpointError, match=f"{re.escape(expected)}$"):
        load_model(folder)


class Hostile:
    """Unpickling it runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


OS = os.system.__module__  # posix or nt


def hostile(folder: Path) -> None:
    torch.save({"a": Hostile(folder / "ran")}, folder / PICKLE)


def hostile_legacy(folder: Path) -> None:
    (folder / PICKLE).write_bytes(pickle.dumps({"a": Hostile(folder / "ran")}, protocol=2))


def bomb(folder: Path) -> None:
    """The same pickle as ever, in a zip that torch would unpack to a gigabyte."""
    path = to_pickle(folder)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.writestr("archive/data/999", bytes(10**7))


def many_from_few(folder: Path) -> None:
    tensors = take(folder)
    tensors["embeddings.word_embeddings.weight"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(tensors, folder / PICKLE)


def half(folder: Path) -> None:
    path = to_pickle(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def holds(content: object) -> Callable[[Path], None]:
    return lambda folder: torch.save(content, folder / PICKLE)


def is_text(text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / PICKLE).write_bytes(text) and None  # type: ignore[return-value]


@reads_pickles
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            hostile,
            rf"is not a pickle of tensors alone \(it asks for {OS}.system\); nothing in it was",
        ),
        (hostile_legacy, rf"is not a pickle of tensors alone \(it asks for {OS}.system\)"),
        (holds(bytearray(5)), "it asks for (builtins|__builtin__).bytearray"),
        (bomb, r"\(it would grow when it is unpacked\); nothing in it was run"),
        (many_from_few, r"claims \d+ bytes of numbers, more than it holds"),
        (half, "is not a pickle of tensors alone"),
        (holds([1]), "holds a list, not tensors by name"),
        (holds({"a": 1}), "has 'a', a int: no tensor that a BERT has"),
        (holds({"a": torch.ones(2, 2).to_sparse()}), "asks for torch._utils._rebuild_sparse_te"),
        (holds(torch.nn.Linear(1, 1)), "asks for torch.nn.modules.linear.Linear"),
        (holds({1: torch.ones(2)}), "has 1, a Tensor: no tensor that a BERT has"),
        (holds({"a": torch.ones(2)}), "has 1 tensors, too few for 3 layers"),
        (is_text(b"<!DOCTYPE html>"), r"\(it is a web page\)"),
        (is_text(b"version https://git-lfs.github.com/spec/v1"), "it is a Git LFS pointer"),
        (is_text(b""), "it is empty"),
    ],
)
def test_bad_pickles(folder: Path, make: Callable[[Path], None], says: str) -> None:
    make(folder)
    (folder / SAFETENSORS).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=says) as raised:
        load_model(folder, allow_pickle=True)
    assert "weights_only" not in str(raised.value), "never suggest the unsafe way"
    assert not (folder / "ran").exists()


def test_a_hostile_pickle_is_one(folder: Path) -> None:
    hostile_legacy(folder)
    pickle.loads((folder / PICKLE).read_bytes())
    assert (folder / "ran").exists()


def header(content: object, size: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = header({"a": entry()}, data=bytes(4))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"1234567", "its header would have"),
        (GOOD[:-1], "not fully covered"),
        (GOOD + b"\0", "not fully covered"),
        (header({}, 2**63), "its header would have 9223372036854775808 bytes"),
        (header({}, 2**64 - 1), "its header would have"),
        (header({}, 100_000_001), "its header would have 100000001 bytes"),
        (header({}, 1000), "invalid header length"),
        (header(b"{"), "Expecting"),
        (header(b"\xff\xff"), "decode"),
        (header([1]), "invalid JSON"),
        (header(b"[" * 100_000), "recursion"),
        (header({"a": entry(offsets=(4, 8))}, data=bytes(8)), "offset"),
        (header({"a": entry(), "b": entry(offsets=(0, 4))}, data=bytes(4)), "offset"),
        (header({"a": entry(), "b": entry(offsets=(5, 9))}, data=bytes(9)), "offset"),
        (header({"a": entry(offsets=(4, 0))}, data=bytes(4)), "offset"),
        (header({"a": entry(offsets=(0, 400))}, data=bytes(4)), "offset"),
        (header({"a": entry(offsets=(-4, 0))}, data=bytes(4)), "invalid JSON"),
        (header({"a": entry(shape=(2,))}, data=bytes(4)), "shape"),
        (header({"a": entry(shape=(2**40, 2**40))}, data=bytes(4)), "overflow"),
        (header({"a": entry(shape=(-1,))}, data=bytes(4)), "invalid JSON"),
        (header({"a": entry(shape="1")}, data=bytes(4)), "invalid JSON"),
        (header({"a": entry(dtype="F33")}, data=bytes(4)), "unknown variant"),
        (
            header(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), data=bytes(4)),
            "twice",
        ),
        (header({f"{n}": entry(shape=(0,), offsets=(0, 0)) for n in range(200_000)}), "would have"),
        (header({"a\n" * 10**5: entry("F33")}, data=bytes(4)), "unknown variant"),
        (header({"a\n" * 10**5: entry(offsets=(4, 8))}, data=bytes(8)), "offset"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        (b"<!doctype html><html>", "it is a web page"),
        (b"PK\3\4" + bytes(100), "it is a zip archive"),
        (b"\x80\2}q\0." + bytes(100), "it is a pickle"),
    ],
)
def test_broken_safetensors(folder: Path, content: bytes, says: str) -> None:
    (folder / SAFETENSORS).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{SAFETENSORS} is broken .*download it again") as e:
        load_model(folder)
    if re.search(says, str(e.value), re.IGNORECASE) is None:
        pytest.fail(str(e.value))
    assert str(e.value).isprintable()
    assert len(str(e.value)) < 500


def test_metadata_of_tensorflow_is_no_matter(folder: Path) -> None:
    save_file(load_file(folder / SAFETENSORS), folder / SAFETENSORS, {"format": "tf"})
    assert same(load_model(folder), random_model(ODD))


FIRST = "model-00001-of-00003.safetensors"
Places = dict[str, str]


def moved(places: Places) -> Places:
    one = next(name for name in places if places[name] != FIRST)
    return {**places, one: FIRST}


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda p: {**p, "a": "../../etc/passwd"}, "names '../../etc/passwd', no file of the fold"),
        (lambda p: {**p, "a": "/etc/passwd"}, "names '/etc/passwd', no file of the folder"),
        (lambda p: {**p, "a": "../model.safetensors"}, "names '../model.safetensors', no file of"),
        (lambda p: {**p, "a": "..\\model.safetensors"}, "no file of the folder"),
        (lambda p: {**p, "a": ""}, "names '', no file of the folder"),
        (lambda p: {**p, "a": "x.safetensors\n"}, "no file of the folder"),
        (lambda p: {**p, "a": "\0.safetensors"}, "no file of the folder"),
        (lambda p: {**p, "a": INDEX}, f"names '{INDEX}', no file of the folder"),  # a cycle
        (lambda p: {**p, "a": "m" * 300 + ".safetensors"}, "File name too long"),
        (lambda p: {**p, "a": 5}, "names 5, which is not the name of a file"),
        (lambda p: {**p, "a": [FIRST]}, "which is not the name of a file"),
        (lambda p: {**p, "a": "no.safetensors"}, "has no file no.safetensors"),
        (lambda p: {**p, "a": FIRST}, "differ in 1 tensors, such as a; one was replaced"),
        (lambda p: {k: v for k, v in p.items() if "key" not in k}, "differ in"),
        (lambda p: {**p, **{f"{n}": FIRST for n in range(5000)}}, "5055 tensors, more than a BERT"),
        (moved, f"{FIRST} and {INDEX} differ in 1 tensors"),
        (lambda _: {}, "has no weight_map; it is not an index of weights"),
        (lambda _: None, "has no weight_map"),
        (lambda p: list(p), "has no weight_map"),
    ],
)
def test_a_bad_index(folder: Path, edit: Callable[[Places], object], says: str) -> None:
    write_index(folder, edit(to_shards(folder)))
    with pytest.raises(CheckpointError, match=re.escape(says)):
        load_model(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "not a readable JSON"), ("[]", "expected a JSON object"), ("{}", "has no weight_map")],
)
def test_an_index_that_is_none(folder: Path, content: str, says: str) -> None:
    (folder / SAFETENSORS).unlink()
    (folder / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=says):
        load_model(folder)


def test_a_shard_that_leads_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    to_shards(folder)
    (folder / FIRST).rename(tmp_path / FIRST)
    (folder / FIRST).symlink_to(tmp_path / FIRST)
    with pytest.raises(CheckpointError, match=f"{FIRST} is a link out of the folder; put the file"):
        load_model(folder)
    (folder / FIRST).unlink()
    (folder / FIRST).symlink_to(FIRST)
    with pytest.raises(CheckpointError, match="Too many levels of symbolic links"):
        load_model(folder)


def test_a_shard_of_another_model(folder: Path) -> None:
    to_shards(folder)
    save_file({"a": torch.ones(1)}, folder / FIRST)
    with pytest.raises(CheckpointError, match=f"{FIRST} and {INDEX} differ in 20 tensors, such as"):
        load_model(folder)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.mkdir, "is a directory; a file belongs there"),
        (os.mkfifo, "is a FIFO, socket or device"),
        (lambda path: path.symlink_to("/dev/zero"), "is a FIFO, socket or device"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    ],
    ids=["directory", "FIFO", "endless", "loop"],
)
@pytest.mark.parametrize(
    "name", ["config.json", "vocab.txt", "tokenizer_config.json", SAFETENSORS, INDEX]
)
def test_what_is_no_file(folder: Path, name: str, make: Callable[[Path], None], says: str) -> None:
    if name == INDEX:
        (folder / SAFETENSORS).unlink()
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(CheckpointError, match=f"{name}.*{says}|cannot read .*{name}: {says}"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "vocab.txt", SAFETENSORS])
def test_no_permission(folder: Path, name: str, as_nobody: Callable[[], None]) -> None:
    (folder / name).chmod(0)
    as_nobody()
    with pytest.raises(CheckpointError, match="Permission denied"):
        load(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="bounds the memory as Linux does")
def test_a_file_of_holes_takes_no_memory(folder: Path) -> None:
    """A header that promises 80 GB, in a file that says it has them."""
    text = json.dumps({"a": entry("F32", (10**10, 2), (0, 8 * 10**10))})
    with (folder / SAFETENSORS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text.encode())
        file.truncate(8 + len(text) + 8 * 10**10)
    assert "has 1 tensors, too few for 3 layers" in load_in_a_gigabyte(folder)


def load_in_a_gigabyte(folder: Path) -> str:
    """What loading says where there is no more memory."""
    code = f"""
import resource, minibert
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
try:
    minibert.load({str(folder)!r}, allow_pickle=True)
except minibert.CheckpointError as error:
    print(error)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="bounds the memory as Linux does")
def test_a_model_larger_than_the_memory(folder: Path) -> None:
    """Its words are a hole in the file, of 1.3 GB, which takes no place on the disk."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 10**7}))
    shapes = {name: list(tensor.shape) for name, tensor in take(folder).items()}
    shapes["embeddings.word_embeddings.weight"][0] = 10**7
    ends = [0, *itertools.accumulate(4 * math.prod(shape) for shape in shapes.values())]
    places = zip(shapes.items(), itertools.pairwise(ends), strict=True)
    text = header({name: entry("F32", shape, place) for (name, shape), place in places})
    (folder / SAFETENSORS).write_bytes(text)
    os.truncate(folder / SAFETENSORS, len(text) + ends[-1])
    told = load_in_a_gigabyte(folder)
    assert told == f"{folder / SAFETENSORS} takes more memory than there is\n"


@reads_pickles
@pytest.mark.parametrize("problem", [MemoryError(), RuntimeError("can't allocate memory: you ...")])
def test_a_pickle_larger_than_the_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def load(*_: object, **__: object) -> None:
        raise problem

    to_pickle(folder)
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(CheckpointError, match=f"{PICKLE} takes more memory than there is$"):
        load_model(folder, allow_pickle=True)
