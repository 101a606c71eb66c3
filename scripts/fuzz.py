"""Feed broken files to the loader, for as long as you like, and keep what breaks it.

    pip install 'minibert-pytorch[fuzz]'
    python scripts/fuzz.py --minutes 10

Whatever is in a file, and whatever head is asked for, the loader must say CheckpointError or
ValueError, or load: in a few seconds and a bounded memory. hypothesis makes the files in these
ways: a good file with bytes changed, JSON with the right keys and wrong values, a pickle with other
opcodes, a config with the weights that it asks for, and bytes at random. What fails is made as
small as possible and kept in tests/data/fuzz/, where tests/test_traps.py tries it again in every
run.
"""

import argparse
import copy
import dataclasses
import hashlib
import io
import json
import logging
import math
import pickletools
import re
import resource
import signal
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors

from minibert.bert import Bert
from minibert.config import BertConfig, CheckpointError
from minibert.glossary import checkpoint_names
from minibert.head_config import HEADS
from minibert.loading import load, new_head
from minibert.model import BertModel
from minibert.saving import save
from minibert.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer

KEPT = Path(__file__).parents[1] / "tests" / "data" / "fuzz"
MEMORY = 4 << 30  # bytes, of which Python with torch takes one GiB before it loads anything
SECONDS = 10.0

CONFIG = BertConfig(len(SPECIAL_TOKENS) + 2, 8, 1, 2, 12, max_position_embeddings=9)

# Of two files at once, the first is a line of JSON.
PAIR = "config.json+model.safetensors"

# File -> the files that would be taken instead of it, which go.
TARGETS = {
    "config.json": [],
    "vocab.txt": ["tokenizer.json"],
    "tokenizer_config.json": ["tokenizer.json"],
    "tokenizer.json": ["vocab.txt"],
    "added_tokens.json": ["tokenizer.json", "tokenizer_config.json"],
    "special_tokens_map.json": ["tokenizer_config.json"],
    "modules.json": [],
    "model.safetensors": [],
    "model.safetensors.index.json": ["model.safetensors"],
    "pytorch_model.bin": ["model.safetensors", "model.safetensors.index.json"],
    PAIR: [],
}


def good_files() -> dict[str, bytes]:
    """One small model, with every kind of file."""
    pieces = [*SPECIAL_TOKENS, "a", "##b"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        tokenizer = WordPieceTokenizer(pieces, lowercase=True)
        bert = Bert(CONFIG, tokenizer, BertModel(CONFIG).eval())
        save(new_head(bert, "pretraining"), folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = {**json.loads(files["config.json"]), "id2label": {"0": "a", "1": "b"}}
    config |= {"classifier_dropout": 0.1, "problem_type": None, "tie_word_embeddings": True}
    files["config.json"] = to_json(config)
    tensors = from_safetensors(files["model.safetensors"])
    places = {name: f"model-0000{1 + n % 2}-of-2.safetensors" for n, name in enumerate(tensors)}
    for shard in set(places.values()):
        files[shard] = to_safetensors({k: v for k, v in tensors.items() if places[k] == shard})
    files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    pickle = io.BytesIO()
    torch.save(tensors, pickle)
    files["pytorch_model.bin"] = pickle.getvalue()
    kinds = [
        {"type": f"sentence_transformers.models.{kind}", "path": path}
        for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"))
    ]
    files["modules.json"] = json.dumps(kinds).encode()
    files["added_tokens.json"] = b'{"[MASK]": 4}'
    files["special_tokens_map.json"] = b'{"additional_special_tokens": ["a"]}'
    return files


def attempt(folder: Path, files: dict[str, bytes], target: str, content: bytes) -> None:
    """Load a good model but for one file; whatever is not an error that we mean, escapes."""
    folder.mkdir(exist_ok=True)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    optional = {"added_tokens.json", "special_tokens_map.json", "modules.json"} - {target}
    for name, good in files.items():
        if name in (*TARGETS[target], *optional):
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(good)
    for name, part in zip(target.split("+"), content.split(b"\n", target.count("+")), strict=False):
        (folder / name).write_bytes(part)
    heads = [*[None] * len(HEADS), "auto", *HEADS]
    try:
        load(folder, head=heads[sum(content) % len(heads)], allow_pickle=True)
    except (CheckpointError, ValueError) as error:
        check_line(str(error))


def check_line(message: str) -> None:
    """What the loader says must be one line, and not a long one."""
    if not message.isprintable() or len(message) > 3000:
        raise AssertionError(f"not one line: {message[:200]!r}")
    if "takes more memory" in message:
        raise AssertionError(f"it took {MEMORY} bytes: {message}")


class Lines(logging.Handler):
    """Looks at what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """A file's content stands in warnings, too."""
        check_line(record.getMessage())


def values(keys: list[str]) -> st.SearchStrategy[Any]:
    """Any JSON, with the keys that the reader asks for."""
    numbers = st.integers() | st.integers(-2, 40) | st.floats()
    leaves = st.none() | st.booleans() | numbers | st.text(max_size=9) | st.sampled_from(keys)
    names = st.sampled_from(keys) | st.text(max_size=4)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
        max_leaves=12,
    )


def places(value: object, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a JSON value: keys and indices, from the outermost."""
    if isinstance(value, dict):
        inner = list(value.items())
    else:
        inner = list(enumerate(value)) if isinstance(value, list) else []
    ways = [way for key, part in inner for way in places(part, (*above, key))]
    return [above, *ways] if above else ways


def replace(value: Any, changes: list[tuple[tuple[Any, ...], Any]]) -> Any:
    """Put other values at some places."""
    value = copy.deepcopy(value)
    for way, new in changes:
        part = value
        with suppress(LookupError, TypeError):  # an earlier change took the place away
            for key in way[:-1]:
                part = part[key]
            part[way[-1]] = new
    return value


def broken_json(known: Any) -> st.SearchStrategy[Any]:
    """A good JSON value with a few places changed, or something else altogether."""
    ways = places(known)
    keys = sorted({str(key) for way in ways for key in way} | {"added_tokens_decoder", "dtype"})
    odd = values(keys)
    change = st.tuples(st.sampled_from(ways), odd)
    return odd | st.lists(change, min_size=1, max_size=3).map(lambda c: replace(known, c))


def contents(target: str, good: bytes) -> st.SearchStrategy[bytes]:
    """Broken files of one kind."""
    place = st.integers(0, len(good)) | st.integers(0, min(len(good), 400))
    change = st.tuples(place, st.integers(0, 8), st.binary(max_size=8))
    changed = st.lists(change, min_size=1, max_size=6).map(lambda changes: edit(good, changes))
    if target == PAIR:
        return pairs()
    if target.endswith(".bin"):
        return pickles(good) | changed | st.binary(max_size=200)
    if target.endswith(".json"):
        return broken_json(json.loads(good)).map(to_json) | changed | st.binary(max_size=200)
    if target.endswith(".safetensors"):
        size = int.from_bytes(good[:8], "little")
        header, data = json.loads(good[8 : 8 + size]), good[8 + size :]
        headers = broken_json(header).map(to_json)
        packed = headers.map(lambda text: len(text).to_bytes(8, "little") + text + data)
        return packed | changed | st.binary(max_size=200)
    return changed | st.binary(max_size=200)


def pairs() -> st.SearchStrategy[bytes]:
    """A config of any number of layers, and weights that it may ask for: they are zero."""
    few = st.integers(0, 5)
    many = st.sampled_from([30, 100, 200, 4000, 10**7])
    prefixes = st.sampled_from(["", "bert.", "module.", "a\nb."])
    shapes = st.none() | st.lists(st.integers(0, 9) | st.just(2**40), max_size=3)
    return st.builds(pair, few | many, few, prefixes, shapes)


def pair(layers: int, lost: int, prefix: str, shape: list[int] | None) -> bytes:
    """A config, and weights with names for it, of which some are lost; of right shapes if None."""
    with torch.device("meta"):
        state = BertModel(CONFIG).state_dict()
    right = {theirs: list(state[own].shape) for own, theirs in checkpoint_names(CONFIG).items()}
    config = dataclasses.replace(CONFIG, num_hidden_layers=min(layers, 200) or 1)
    header: dict[str, Any] = {}
    end = 0
    for name in list(checkpoint_names(config).values())[lost:]:
        sizes = shape if shape is not None else right[re.sub(r"\.\d+\.", ".0.", name)]
        start, end = end, end + 4 * math.prod(sizes)
        header[prefix + name] = {"dtype": "F32", "shape": sizes, "data_offsets": [start, end]}
    text = to_json(header)
    values = {"model_type": "bert", **dataclasses.asdict(config), "num_hidden_layers": layers}
    data = bytes(min(end, 1 << 20))
    return to_json(values) + b"\n" + len(text).to_bytes(8, "little") + text + data


# What a pickle may be made of: each opcode alone, names that torch knows, values, and calls.
NAMES = """builtins bytearray|builtins set|builtins complex|_codecs encode|collections OrderedDict
collections Counter|torch FloatStorage|torch Tensor|torch Size|torch device|torch float32
torch.nn.parameter Parameter|torch.serialization _get_layout|torch.storage UntypedStorage
torch._utils _rebuild_tensor_v2|torch._utils _rebuild_parameter|torch._utils _rebuild_sparse_tensor
torch._utils _rebuild_meta_tensor_no_storage|torch._tensor _rebuild_from_type_v2|posix system"""
GLOBALS = [f"c{name.replace(' ', chr(10))}\n".encode() for name in re.split(r"\||\n", NAMES)]
VALUES = [
    *(b"h" + bytes([place]) for place in range(0, 60, 7)),
    *(b"\x8a\x08" + number.to_bytes(8, "little") for number in (0, 1, 8, 10**6, 5 * 10**9, 2**62)),
    *(b"X" + len(text).to_bytes(4, "little") + text for text in (b"storage", b"0", b"cpu", b"a")),
]
OPCODES = [
    *(opcode.code.encode("latin-1") for opcode in pickletools.opcodes),
    *(*GLOBALS, *VALUES),
    *(name + value + b"\x85R" for name in GLOBALS for value in VALUES),
]


def pickles(good: bytes) -> st.SearchStrategy[bytes]:
    """What torch.save wrote with other opcodes here and there, in both of its formats."""
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (listed,) = (name for name in entries if name.endswith("/data.pkl"))
    old = io.BytesIO()
    torch.save(
        torch.load(io.BytesIO(good), weights_only=True),
        old,
        _use_new_zipfile_serialization=False,
    )
    parts = split_pickles(old.getvalue())

    def in_zip(pickled: bytes) -> bytes:
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w") as archive:
            for name, content in (entries | {listed: pickled}).items():
                archive.writestr(name, content)
        return whole.getvalue()

    def in_legacy(pickled: bytes) -> bytes:
        return b"".join([*parts[:3], pickled, *parts[4:]])

    return other_opcodes(entries[listed]).map(in_zip) | other_opcodes(parts[3]).map(in_legacy)


def split_pickles(content: bytes) -> list[bytes]:
    """The five pickles of a legacy file, and the numbers after them."""
    file = io.BytesIO(content)
    ends = [0]
    for _ in range(5):
        list(pickletools.genops(file))
        ends.append(file.tell())
    return [content[a:b] for a, b in zip(ends, [*ends[1:], None], strict=True)]


def other_opcodes(pickled: bytes) -> st.SearchStrategy[bytes]:
    """Put other opcodes in place of some, at the start more often than at the end."""
    starts = [place or 0 for _, _, place in pickletools.genops(pickled)]
    place = st.sampled_from(starts) | st.sampled_from(starts[:60])
    new = st.lists(st.sampled_from(OPCODES), max_size=5).map(b"".join)
    change = st.tuples(place, st.integers(0, 3), new)
    return st.lists(change, min_size=1, max_size=5).map(
        lambda changes: edit(pickled, sorted(changes, reverse=True))
    )


def edit(good: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Put other bytes, more or fewer, in place of some."""
    for start, length, new in changes:
        good = good[:start] + new + good[start + length :]
    return good


def to_json(value: object) -> bytes:
    """JSON, in which a lone surrogate stays one."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


def give_up(*_: object) -> None:
    """End what takes too long."""
    raise AssertionError(f"not done in {SECONDS} seconds")


def search(target: str, files: dict[str, bytes], number: int, examples: int) -> str | None:
    """Try so many files of one kind; keep the smallest that fails, and say what it did."""
    last = b""

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        report_multiple_bugs=False,
        deadline=timedelta(seconds=SECONDS),
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(contents(target, files.get(target, b"")))
    def trial(content: bytes) -> None:
        nonlocal last
        last = content
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            attempt(folder, files, target, content)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        run: Callable[[], None] = trial
        try:
            run()
        except BaseException as error:  # a panic of Rust is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            KEPT.mkdir(parents=True, exist_ok=True)
            path = KEPT / f"{target}.{hashlib.sha256(last).hexdigest()[:8]}"
            path.write_bytes(last)
            return f"{path.name}: {type(error).__name__}: {str(error)[:300]}"
    return None


def main() -> int:
    """Run the command; gives its exit status: 1 if something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--file", choices=TARGETS, help="only this one")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, give_up)
    warnings.simplefilter("ignore")  # torch's, on old pickles
    logging.getLogger("minibert").addHandler(Lines())
    logging.getLogger("minibert").setLevel(logging.INFO)
    logging.getLogger("minibert").propagate = False
    torch.manual_seed(0)
    files = good_files()
    number, end, tried = options.seed, time.monotonic() + 60 * options.minutes, 0
    failed: set[str] = set()
    while time.monotonic() < end:
        for target in [options.file] if options.file else TARGETS:
            failure = search(target, files, number, 200)
            tried += 200
            if failure and failure not in failed:
                failed.add(failure)
                print(failure, flush=True)
        number += 1
    print(f"{tried} files, seeds {options.seed} to {number - 1}: {len(failed)} failures")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
