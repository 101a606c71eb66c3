"""Feed broken files to the loader, for as long as you like, and keep what breaks it.

    pip install 'minibert-pytorch[fuzz]'
    python scripts/fuzz.py --minutes 10

Whatever is in a file, the loader must say CheckpointError or ValueError, or load: in a few seconds
and a bounded memory. hypothesis makes the files in three ways: a good file with bytes changed,
JSON with the right keys and wrong values, and bytes at random. What fails is made as small as
possible and kept in tests/data/fuzz/, where tests/test_traps.py tries it again in every run.
"""

import argparse
import copy
import hashlib
import io
import json
import logging
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_safetensors

from minibert.bert import Bert
from minibert.config import BertConfig, CheckpointError
from minibert.glossary import checkpoint_names
from minibert.loading import load
from minibert.model import BertModel
from minibert.saving import save
from minibert.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer

KEPT = Path(__file__).parents[1] / "tests" / "data" / "fuzz"
MEMORY = 4 << 30  # bytes, of which Python with torch takes one GiB before it loads anything
SECONDS = 10.0

CONFIG = BertConfig(len(SPECIAL_TOKENS) + 2, 8, 1, 2, 12, max_position_embeddings=9)

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
    "pytorch_model.bin": ["model.safetensors"],
}


def good_files() -> dict[str, bytes]:
    """One small model, with every kind of file."""
    pieces = [*SPECIAL_TOKENS, "a", "##b"]
    model = BertModel(CONFIG).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        save(Bert(CONFIG, WordPieceTokenizer(pieces, lowercase=True), model), folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
    state = model.state_dict()
    tensors = {theirs: state[own] for own, theirs in checkpoint_names(CONFIG).items()}
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
            (folder / name).write_bytes(content if name == target else good)
    try:
        load(folder, allow_pickle=True)
    except (CheckpointError, ValueError) as error:
        if "\n" in str(error) or len(str(error)) > 3000:
            raise AssertionError(f"not one line: {str(error)[:200]!r}") from error


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
    if target.endswith(".json"):
        return broken_json(json.loads(good)).map(to_json) | changed | st.binary(max_size=200)
    if target.endswith(".safetensors"):
        size = int.from_bytes(good[:8], "little")
        header, data = json.loads(good[8 : 8 + size]), good[8 + size :]
        headers = broken_json(header).map(to_json)
        packed = headers.map(lambda text: len(text).to_bytes(8, "little") + text + data)
        return packed | changed | st.binary(max_size=200)
    return changed | st.binary(max_size=200)


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
    @given(contents(target, files[target]))
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
    logging.disable()
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
