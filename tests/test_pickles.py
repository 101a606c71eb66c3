import copy
import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ODD, random_bert_with, random_model

from minibert.pickles import LARGEST, check_pickle

MATRIX = torch.randn(40, 40)
KINDS: dict[str, dict[str, torch.Tensor]] = {
    "state_dict": random_model(ODD).state_dict(),
    "dict": dict(random_model(ODD).state_dict()),
    "parameters": dict(random_model(ODD).named_parameters()),
    "head": random_bert_with("pretraining").head.state_dict(),  # type: ignore[union-attr]
    **{
        str(dtype): {"a": torch.ones(3, dtype=dtype)}
        for dtype in (torch.half, torch.bfloat16, torch.double, torch.long, torch.int, torch.short)
        + (torch.int8, torch.uint8, torch.bool)
    },
    "views": {"a": MATRIX[3:5], "b": MATRIX.T, "c": MATRIX[::2, 1::3], "d": MATRIX[7, 7]},
    "repeated": {"a": torch.ones(1).expand(9, 9), "b": MATRIX},
    "shared": {"a": MATRIX, "b": MATRIX},
    "empty": {"a": torch.ones(0), "b": torch.ones(0, 3), "c": torch.ones(3, 0)[:, 0:]},
    "scalar": {"a": torch.tensor(1.0)},
    "training": {"a": torch.ones(2, requires_grad=True)},
    "none": {},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_torch_saves_is_let_through(tmp_path: Path, kind: str, zipped: bool) -> None:
    path = tmp_path / "a.bin"
    torch.save(KINDS[kind], path, _use_new_zipfile_serialization=zipped)
    check_pickle(path)
    assert torch.load(path, weights_only=True).keys() == KINDS[kind].keys()


def test_checksums_that_were_not_computed_are_no_matter(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(KINDS["dict"], tmp_path / "a.bin")
    finally:
        torch.serialization.set_crc32_options(before)
    check_pickle(tmp_path / "a.bin")


def named(*parts: str) -> bytes:
    return "c{}\n{}\n".format(*parts).encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


DICT = named("collections", "OrderedDict")
REBUILD = named("torch._utils", "_rebuild_tensor_v2")


def storage(count: int = 4, key: str = "0", view: bytes = b"") -> bytes:
    kind = named("torch", "FloatStorage")
    return b"(" + text("storage") + kind + text(key) + text("cpu") + number(count) + view + b"tQ"


def tensor(stored: bytes, size: int = 4, stride: int = 1, offset: int = 0, axes: int = 1) -> bytes:
    shape = b"(" + number(size) * axes + b"t(" + number(stride) * axes + b"t"
    return REBUILD + b"(" + stored + number(offset) + shape + b"\x89" + DICT + b")RtR"


def in_zip(body: bytes, numbers: bytes = bytes(16)) -> bytes:
    """What torch.save writes, around any pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("archive/data/0", numbers)
        archive.writestr("archive/version", "3\n")
    return content.getvalue()


def in_legacy(body: bytes, keys: tuple[str, ...] = ("0",), numbers: bytes = bytes(16)) -> bytes:
    """What torch.save wrote until 1.6, around any pickle."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    start = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    end = pickle.dumps([*keys], 2) + struct.pack("<q", len(numbers) // 4) + numbers
    return b"".join([*start, b"\x80\x02", body, b".", end])


def entry(body: bytes) -> bytes:
    return b"}" + text("a") + body + b"s"


@pytest.mark.parametrize(
    "content",
    [
        in_zip(entry(tensor(storage(), size=2, stride=3))),
        in_legacy(entry(tensor(storage(view=b"N"), size=2, stride=3))),
    ],
)
def test_the_pickles_made_here_are_as_torch_reads_them(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    check_pickle(path)
    assert torch.load(path, weights_only=True)["a"].tolist() == [0, 0]


BEYOND = "it has a tensor that goes beyond its numbers"
CONTRADICT = "its storages contradict each other"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (named("builtins", "bytearray") + number(5) + b"\x85R", "asks for builtins.bytearray"),
        (named("__builtin__", "set") + b")R", "it asks for __builtin__.set"),
        (named("posix", "system") + text("true") + b"\x85R", "it asks for posix.system"),
        (named("torch._utils", "_rebuild_sparse_tensor"), "it asks for torch._utils._rebuild_s"),
        (named("torch", "a\rb" + "c" * 200), r"it asks for 'torch.a\\rbc{80,95}$"),
        (DICT + b"(" + text("a") + b"N\x86tR", "0 positional arguments but 1 was given"),
        (DICT + b")R}" + text("a") + b"Nsb", "it has objects with attributes"),
        (DICT + b")\x81", "129"),  # NEWOBJ
        (b"\x96" + struct.pack("<Q", 10**12), "150"),  # BYTEARRAY8
        (b"X" + struct.pack("<I", 2**32 - 1), "^$|codec"),
        (tensor(storage(), size=5), BEYOND),
        (tensor(storage(), offset=1), BEYOND),
        (tensor(storage(), stride=2), BEYOND),
        (tensor(storage(), offset=-1), BEYOND),
        (tensor(storage(), size=2, stride=-1, offset=1), BEYOND),
        (tensor(storage(), size=-1), BEYOND),
        (tensor(storage(), size=1, axes=9), BEYOND),
        (tensor(storage(0)), BEYOND),
        (tensor(storage()) + tensor(storage(5)), CONTRADICT),
        (tensor(storage(-4), size=0), CONTRADICT),
    ],
)
@pytest.mark.parametrize("make", [in_zip, in_legacy])
def test_whatever_else_a_pickle_asks_for_is_refused(
    tmp_path: Path, body: bytes, says: str, make: Any
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(make(body))
    with pytest.raises(Exception, match=says):
        check_pickle(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (in_legacy(entry(tensor(storage(10**9), 1))), "claims 4000000000 bytes of numbers"),
        (in_legacy(entry(tensor(storage())), ()), "it lacks numbers of some tensors"),
        (in_legacy(entry(tensor(storage())), ("0", "1")), "it lacks numbers of some tensors"),
        (in_legacy(entry(tensor(storage(view=b"(" + text("v") + b"t")))), CONTRADICT),
        (in_zip(text("a" * LARGEST)), f"its list of tensors would have {LARGEST + 8} bytes"),
    ],
)
def test_numbers_that_are_not_there(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        check_pickle(path)


def test_files_of_an_archive_that_share_their_bytes(tmp_path: Path) -> None:
    """Nothing is compressed, and yet it would grow: each of the entries is the same megabyte."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", b"}.")
        archive.writestr("archive/data/0", bytes(1 << 20))
        for number in range(1, 99):
            again = copy.copy(archive.getinfo("archive/data/0"))
            again.filename = f"archive/data/{number}"
            archive.filelist.append(again)
    path = tmp_path / "a.bin"
    path.write_bytes(content.getvalue())
    with pytest.raises(ValueError, match="it would grow when it is unpacked"):
        check_pickle(path)


@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/DATA.pkl"])
def test_two_files_of_one_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(in_zip(b"}"))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(name, b"}.")
    with pytest.raises(ValueError, match="it has two files of one name"):
        check_pickle(path)
