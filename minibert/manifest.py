"""What an extraction was begun with and how far it came, so that it can go on and is never mixed.

`manifest.json` in a folder of shards, or `NAME.manifest.json` beside a file, is an object of

    minibert, torch   versions
    model             name and commit, and sha256 of its numbers, vocabulary and settings
    input             name, field; lines, bytes and sha256 of all of it (null for a pipe)
    options           all else that a bit of the result can depend on
    layers            what the vectors of each layer are: numbers, or how layers were combined
    done              lines, bytes and sha256 of the input, up to the last that is stored
    cut               how many texts were cut to what the model reads
    complete          whether that is all
    files             what is stored where, see shards.py

It is replaced in one step after what it tells of is on the disk. Read next: blocks.py.
"""

import hashlib
import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from minibert.batches import fitting_tokens
from minibert.bert import Bert
from minibert.config import CheckpointError
from minibert.hub import ModelFiles
from minibert.job import Job
from minibert.lines import Position
from minibert.shards import replace

_SAME = ("minibert", "torch", "model", "input", "options")  # what must not change on the way
_OURS = ("manifest.json", "manifest.json.tmp", "vectors-[0-9]*.safetensors*")


def open_manifest(
    target: Path, is_folder: bool, wanted: dict[str, Any], existing: str
) -> tuple[Path, dict[str, Any]]:
    """Begin an output, or go on with one that was begun with the same.

    Args:
        target: the folder or file.
        is_folder: which of them.
        wanted: the first five parts of a manifest, and `layers`.
        existing: "continue" what is there, or begin; "resume" only what is there; "overwrite" it.

    Returns:
        The path of the manifest, and what is in it.

    Raises:
        ValueError: if it was begun with something else, or is not ours.
        CheckpointError: if the manifest is broken.
    """
    path = target / "manifest.json" if is_folder else _beside(target)
    if target.exists() and not (target.is_dir() if is_folder else target.is_file()):
        known = "no" if is_folder else "a" if target.is_dir() else "a pipe or device, no file or"
        raise ValueError(f"{target} is {known} folder; give another --output")
    if existing == "overwrite":
        _remove(target, path)
    if path.exists():
        manifest = _read(path)
        _check_same(target, manifest, json.loads(json.dumps(wanted)))
        return path, manifest
    if existing == "resume":
        raise ValueError(f"there is nothing to resume: {path} does not exist")
    try:
        (target if is_folder else target.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {target}: {error.strerror}") from error
    if others := _others(target, is_folder):
        raise ValueError(f"{target} has no manifest: {others[0]} is not ours to overwrite")
    begun = {"done": Position(0, 0, hashlib.sha256().hexdigest())._asdict(), "cut": 0}
    manifest = {**wanted, **begun, "complete": False, "files": []}
    write_manifest(path, manifest)
    return path, manifest


def origin(
    bert: Bert, job: Job, files: ModelFiles | None, whole: Position | None
) -> dict[str, Any]:
    """The parts of a manifest that must not change on the way.

    Args:
        bert: a loaded model.
        job: what is extracted.
        files: where the model is from.
        whole: the size of the input; None for a pipe.
    """
    word = bert.model.embeddings.word.weight
    own = ("input", "output", "reading", "field")  # said elsewhere
    options = {name: value for name, value in vars(job).items() if name not in own}
    options |= {**vars(job.reading), "format": job.kind, "threads": torch.get_num_threads()}
    options["batch_tokens"] = job.batch_tokens or fitting_tokens(bert.config)
    options |= {"device": str(word.device), "dtype": str(word.dtype).removeprefix("torch.")}
    name, commit = (files.source, files.commit or None) if files else (None, None)
    size = whole._asdict() if whole else dict.fromkeys(Position._fields)
    return {
        "minibert": importlib.metadata.version("minibert-pytorch"),
        "torch": torch.__version__,
        "model": {"name": name, "commit": commit, "sha256": fingerprint(bert)},
        "input": {"name": job.input, "field": job.field, **size},
        "options": options,
    }


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest."""
    replace(path, f"{json.dumps(manifest, indent=1, ensure_ascii=False)}\n".encode())


def fingerprint(bert: Bert) -> str:
    """A sha256 of all that a model's numbers come from: weights, config, vocabulary, settings."""
    digest = hashlib.sha256()
    tokenizer, normalizer = bert.tokenizer, bert.tokenizer.normalizer
    cleaning = [normalizer.lowercase, normalizer.strip_accents, normalizer.tokenize_chinese_chars]
    pieces = [tokenizer.vocabulary, tokenizer.special_ids, tokenizer.truncation_side]
    digest.update(repr([asdict(bert.config), cleaning, pieces]).encode())
    for name, tensor in sorted(bert.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.to_dense() if tensor.is_mkldnn else tensor.cpu()  # of a packed model
        digest.update(plain.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _beside(target: Path) -> Path:
    return target.with_name(f"{target.name}.manifest.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
        if not all(name in manifest for name in (*_SAME, "done", "cut", "complete", "files")):
            raise ValueError("it is not ours")
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return dict(manifest)


def _check_same(target: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    before, now = _flat(old), _flat(new)
    names = sorted(name for name in {**before, **now} if before.get(name) != now.get(name))
    if names:
        told = [f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in names[:10]]
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        raise ValueError(
            f"{target} was begun with something else: {'; '.join(told)}{more}; give --overwrite to "
            "begin anew, or another --output"
        )


def _flat(manifest: dict[str, Any]) -> dict[str, Any]:
    """Section and key -> value, without names: a file that moved is the same file."""
    flat: dict[str, Any] = {}
    for section in _SAME:
        value = manifest[section]
        parts = value if isinstance(value, dict) else {"version": value}
        flat |= {f"{section}.{key}": part for key, part in parts.items() if key != "name"}
    return flat


def _remove(target: Path, manifest: Path) -> None:
    """Take away what an extraction wrote, the manifest first, and nothing else."""
    manifest.unlink(missing_ok=True)
    if target.is_dir():
        for pattern in _OURS:
            for path in target.glob(pattern):
                path.unlink()
    else:
        target.resolve().unlink(missing_ok=True)  # of a link the file, which is made anew


def _others(target: Path, is_folder: bool) -> list[Path]:
    """What stands in the way of a new output."""
    if not is_folder:
        return [target] if target.exists() else []
    return sorted(path for path in target.iterdir() if path.name != "manifest.json.tmp")
