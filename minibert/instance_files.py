"""Instances in files: made once, then read in batches as often as training wants.

A folder of instances has the tokenizer's vocab.txt and tokenizer_config.json; instances.json, which
says how they were made and what there is; and a file of instances-00000.safetensors and so on for
each block of documents, in random order. A file of n instances has these tensors:

    starts           I64 (n + 1)   instance i has the tokens from starts[i] up to starts[i + 1]
    ids              I32           of them, with the masks
    firsts           I32 (n)       how many of them are segment 0
    position_starts  I64 (n + 1)   the same as starts, for what is to be predicted:
    positions        I32           where it is, counted in the instance
    labels           I32           and which piece it was
    is_random        U8 (n)        1 if the second text is from elsewhere

Read next: pretraining.py.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from tqdm import tqdm  # type: ignore[import-untyped]

from minibert.config import CheckpointError
from minibert.files import read_object
from minibert.hub import load_tokenizer
from minibert.instances import (
    Instance,
    InstanceMaker,
    Recipe,
    blocks,
    read_documents,
    unigram_entropy,
)
from minibert.lines import survey
from minibert.shards import replace, sync_folder, to_disk
from minibert.tokenizer import WordPieceTokenizer
from minibert.vocabulary_training import write_tokenizer

MANIFEST = "instances.json"

_FORMAT = "minibert instances 1"
_TENSORS = ("starts", "ids", "firsts", "position_starts", "positions", "labels", "is_random")


def write_instances(
    names: Sequence[str], tokenizer: WordPieceTokenizer, recipe: Recipe, seed: int, folder: Path
) -> None:
    """Make instances of files of text, as read_documents reads them, and store them.

    Memory stays the same, however large the files. If it was killed, the same call goes on, to the
    same bytes. Each block of documents has its own random numbers, those of `seed` + its number.

    Raises:
        OSError: if a text cannot be read, or is not UTF-8.
        ValueError: if they have no sentence, or one document only; if the folder has other files,
            or instances of other texts or another recipe.
    """
    made_of = {
        "format": _FORMAT,
        "texts": [_digest_of_text(name) for name in names],
        "tokenizer": _digest_of_tokenizer(tokenizer),
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
    }
    if _begun(folder, made_of):
        return
    maker = InstanceMaker(tokenizer, recipe)
    is_hidden = not sys.stderr.isatty()
    documents = tqdm(read_documents(names, tokenizer), unit=" documents", disable=is_hidden)
    paths = []
    for number, block in enumerate(blocks(documents)):
        paths.append(folder / f"instances-{number:05}.safetensors")
        if not paths[-1].exists():
            made = maker.make(block, Random(seed + number))
            if number == 0:
                folder.mkdir(parents=True, exist_ok=True)
                replace(folder / MANIFEST, json.dumps({**made_of, "complete": False}).encode())
                write_tokenizer(tokenizer, folder)
            _write(paths[-1], made)
    if not paths:
        raise ValueError(f"there is no sentence in {', '.join(names)}")
    there_is = _count(paths, len(tokenizer))
    whole = {**made_of, "complete": True, **there_is}
    replace(folder / MANIFEST, json.dumps(whole, indent=2).encode())


class Instances:
    """A folder of instances that is complete.

    Attributes:
        tokenizer, recipe: that they were made with.
        tokens, to_predict: how many there are in all, and how many of them to be predicted.
        random_next: how many instances have a random next sentence.
        unigram_entropy: of what is to be predicted, in nats: the loss of who knows how often each
            piece is asked for, and nothing else.
        identity: tells these instances from others.

    Raises:
        CheckpointError: if there is none, or a file of it is broken.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        path = self._folder / MANIFEST
        manifest = read_object(path)
        if manifest.get("format") != _FORMAT:
            raise CheckpointError(f"{path} is not what minibert writes beside instances")
        if manifest.get("complete") is not True:
            raise CheckpointError(f"{folder} is not complete; make its instances once more")
        self.tokenizer = load_tokenizer(folder)
        self.recipe = Recipe(**manifest["recipe"])
        self.tokens: int = manifest["tokens"]
        self.to_predict: int = manifest["to_predict"]
        self.random_next: int = manifest["random_next"]
        self.unigram_entropy: float = manifest["unigram_entropy"]
        self.identity = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        self._files: dict[str, int] = manifest["files"]

    def __len__(self) -> int:
        return sum(self._files.values())

    def __iter__(self) -> Iterator[Instance]:
        for name, size in self._files.items():
            yield from self._read(name, range(size))

    def shuffled(self, seed: int, begin: int = 0) -> Iterator[Instance]:
        """Again and again all instances, in another order each time, from number `begin` on.

        The files come in random order, and within each its instances. The number says all: to go
        on reads no more than the file in which that instance is.
        """
        first, skipped = divmod(begin, len(self))
        for epoch in count(first):
            names = list(self._files)
            Random(f"{seed} {epoch}").shuffle(names)
            for name in names:
                if skipped >= self._files[name]:
                    skipped -= self._files[name]
                    continue
                order = list(range(self._files[name]))
                Random(f"{seed} {epoch} {name}").shuffle(order)
                yield from self._read(name, order[skipped:])
                skipped = 0

    def _read(self, name: str, order: Sequence[int]) -> Iterator[Instance]:
        stored = _load(self._folder / name)
        if len(stored["firsts"]) != self._files[name]:
            raise CheckpointError(f"{self._folder / name} is not the file that {MANIFEST} tells of")
        starts, places = stored["starts"], stored["position_starts"]
        for i in order:
            tokens, hidden = slice(*starts[i : i + 2]), slice(*places[i : i + 2])
            yield Instance(
                stored["ids"][tokens].tolist(),
                int(stored["firsts"][i]),
                stored["positions"][hidden].tolist(),
                stored["labels"][hidden].tolist(),
                bool(stored["is_random"][i]),
            )


def _begun(folder: Path, made_of: dict[str, Any]) -> bool:
    """Whether nothing is left to do; an error if the folder is for something else."""
    path = folder / MANIFEST
    if not path.exists():
        others = sorted(set(os.listdir(folder)) - {f"{MANIFEST}.tmp"}) if folder.exists() else []
        if others:
            raise ValueError(f"{folder} has {others[0]}, and no {MANIFEST}; take a new folder")
        return False
    there = read_object(path)
    for name, value in made_of.items():
        if there.get(name) != value:
            raise ValueError(
                f"{folder} has instances with another {name}: {there.get(name)}, not {value}; take "
                "a new folder, or delete this one"
            )
    return there.get("complete") is True


def _digest_of_text(name: str) -> str:
    """Of the whole file, read once in advance: its mistakes come to light before the work."""
    position = survey(name)
    if position is None:
        raise ValueError(f"{name} is no file; texts are read more than once")
    return position.sha256


def _digest_of_tokenizer(tokenizer: WordPieceTokenizer) -> str:
    normalizer = tokenizer.normalizer
    settings = (normalizer.lowercase, normalizer.strip_accents, normalizer.tokenize_chinese_chars)
    return hashlib.sha256(repr((settings, tokenizer.vocabulary)).encode()).hexdigest()


def _write(path: Path, made: Sequence[Instance]) -> None:
    tensors = {
        "starts": np.array([0, *accumulate(len(i.input_ids) for i in made)], "<i8"),
        "ids": np.fromiter(chain.from_iterable(i.input_ids for i in made), "<i4"),
        "firsts": np.array([i.first for i in made], "<i4"),
        "position_starts": np.array([0, *accumulate(len(i.positions) for i in made)], "<i8"),
        "positions": np.fromiter(chain.from_iterable(i.positions for i in made), "<i4"),
        "labels": np.fromiter(chain.from_iterable(i.labels for i in made), "<i4"),
        "is_random": np.array([i.is_random_next for i in made], "u1"),
    }
    draft = path.with_name(f"{path.name}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(save(tensors))
            to_disk(file)
        os.replace(draft, path)
        sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is broken ({error}); make its folder anew") from error
    if sorted(stored) != sorted(_TENSORS):
        raise CheckpointError(f"{path} has no instances; make its folder anew")
    return stored


def _count(paths: Sequence[Path], vocab_size: int) -> dict[str, Any]:
    """What there is in the files."""
    files: dict[str, int] = {}
    tokens = randoms = 0
    counts = np.zeros(vocab_size, np.int64)
    for path in paths:
        stored = _load(path)
        files[path.name] = len(stored["firsts"])
        tokens += len(stored["ids"])
        randoms += int(stored["is_random"].sum())
        counts += np.bincount(stored["labels"], minlength=vocab_size)
    return {
        "instances": sum(files.values()),
        "tokens": tokens,
        "to_predict": int(counts.sum()),
        "random_next": randoms,
        "unigram_entropy": unigram_entropy(counts.tolist()),
        "files": files,
    }
