"""From lines of text to vectors: one after the other to look at, or a whole file to a file.

A file goes through in blocks of some thousand lines. Inside a block, texts of one length go
through the model together, longest first, and nothing is padded; the next block is read and
tokenized meanwhile. What a block gives is stored, and then counted in the manifest, before the
next: memory stays the same whatever the input's size, and a run that was killed goes on there.

Read next: bundle.py.
"""

import ctypes
import os
import platform
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from minibert.batches import mixed_states
from minibert.bert import Bert
from minibert.blocks import Block, encode_line, read_ahead, read_blocks
from minibert.hub import ModelFiles
from minibert.job import Job, layer_labels, row_shape
from minibert.lines import Lines, Position, survey
from minibert.manifest import open_manifest, origin, write_manifest
from minibert.shards import Extracted, JsonWriter, NpyWriter, ShardWriter, Writer
from minibert.vectors import Reading, read

TRIM_TOKENS = 1 << 13  # a second of work or more, of which giving memory back takes little

# oneDNN compiles programs for each shape, and with torch keeps thousands: 500 MB. Read once.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")


def extract(
    bert: Bert, lines: Iterable[str], reading: Reading, max_length: int | None = None
) -> Iterator[Extracted]:
    """Run each line through the model, alone.

    Args:
        bert: a loaded model.
        lines: a text each, or a pair with " ||| " between; an empty line is [CLS] [SEP].
        reading: which vectors of it; "stack" keeps layers apart.
        max_length: cut texts to so many tokens; None makes a text that is too long an error.

    Yields:
        The vectors of one line after the other.

    Raises:
        ValueError: if a layer does not exist, or a text is too long; names the line.
    """
    labels = layer_labels(reading, bert.config.num_hidden_layers)
    job = Job("-", "-", reading, max_length=max_length, long="error")
    for number, line in enumerate(lines):
        text, encoding, _ = encode_line(bert, job, line, number + 1)
        for _, states in mixed_states(bert.model, [encoding], reading):
            yield Extracted(number, labels, read(reading, text, encoding, states), reading.unit)


def to_table(extracted: Extracted, width: int) -> str:
    """A table per layer, a row per token, and as many numbers as `width` columns have room for."""
    tokens, unit = extracted.vectors.tokens, extracted.unit
    first_column = max((_columns(token) for token in tokens), default=0)
    shown = max(1, (width - first_column - len(" ...")) // 10)
    vectors = extracted.vectors.vectors
    rows = []
    for number, layer in enumerate(extracted.layers):
        of_layer = vectors[:, number] if vectors.ndim == 3 else vectors
        rows.append(f"layer {layer}: {len(tokens)} {unit}s, {of_layer.shape[1]} numbers each")
        for token, vector in zip(tokens, of_layer.tolist(), strict=True):
            padding = " " * (first_column - _columns(token))
            numbers = "".join(f"{value:10.4f}" for value in vector[:shown])
            rows.append(token + padding + numbers + (" ..." if shown < len(vector) else ""))
    return "\n".join(rows)


def _columns(token: str) -> int:
    """Columns of a terminal: East Asian characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in token)
    marks = sum(unicodedata.combining(character) > 0 for character in token)
    return len(token) + wide - marks


def extract_file(
    bert: Bert, job: Job, files: ModelFiles | None = None, existing: str = "continue"
) -> dict[str, Any]:
    """Write the vectors of every line of a file; go on with what an earlier run left.

    Progress is shown on stderr if that is a terminal. The output is, bit by bit, that of a run
    without interruption.

    Args:
        bert: a loaded model.
        job: what to extract.
        files: where the model is from, for the manifest.
        existing: "continue" an output that is there, "resume" it and never begin, "overwrite" it.

    Returns:
        The manifest of the complete output.

    Raises:
        ValueError: if an option cannot be met, a text cannot be read, or the output was begun with
            another model, input or option.
        CheckpointError: if the output is broken.
        OSError: if the input cannot be read or the output cannot be written; what is stored stays.
    """
    layers = layer_labels(job.reading, bert.config.num_hidden_layers)
    with closing(Lines(job.input, job.field)) as lines:
        whole = survey(job.input, job.field, job.limit)
        wanted = {**origin(bert, job, files, whole), "layers": layers}
        is_folder = job.kind == "safetensors"
        path, manifest = open_manifest(Path(job.output), is_folder, wanted, existing)
        lines.skip(Position(**manifest["done"]))
        try:
            _go_on(bert, job, lines, whole, (path, manifest))
        except OSError as error:
            if error.errno is None:  # of the input, and says so
                raise
            safe = f"its first {manifest['done']['lines']} texts are safe; the same command goes on"
            raise OSError(f"cannot write {job.output}: {error.strerror}; {safe}") from error
    return manifest


def _go_on(
    bert: Bert, job: Job, lines: Lines, whole: Position | None, output: tuple[Path, dict[str, Any]]
) -> None:
    """Bring what is left of the input to the output, and keep its manifest true."""
    path, manifest = output
    done = lines.position.lines
    total = job.limit if whole is None else whole.lines
    texts = islice(lines, None if total is None else total - done)
    with (
        closing(_writer(bert, job, manifest)) as writer,
        tqdm(
            total=total,
            initial=done,
            unit=" lines",
            smoothing=0,  # blocks begin with their longest texts: only the mean rate tells
            ncols=get_terminal_size().columns,  # tqdm shows nothing where a terminal hides its size
            nrows=get_terminal_size().lines,
            disable=None,  # means: unless stderr is a terminal
        ) as progress,
    ):
        for block in read_ahead(read_blocks(bert, job, lines, texts)):
            if manifest["complete"]:
                raise ValueError(f"{job.input} has changed: {job.output} is of fewer lines")
            _store(bert, job, block, writer, progress.update)
            cut = manifest["cut"] + block.cut
            manifest |= {"done": block.end._asdict(), "cut": cut}
            write_manifest(path, manifest)
    if whole is not None and lines.position != whole:
        raise ValueError(f"{job.input} was changed while it was read; give --overwrite")
    if not manifest["complete"]:
        manifest["complete"] = True
        write_manifest(path, manifest)


def _store(bert: Bert, job: Job, block: Block, writer: Writer, count: Callable[[], object]) -> None:
    """Bring one block through the model to the disk."""
    writer.begin(block.first, block.layout)
    encodings, texts = block.encodings, block.texts
    tokens = 0
    try:
        for n, states in mixed_states(
            bert.model, encodings, job.reading, job.stride, job.batch_tokens
        ):
            writer.put(n, read(job.reading, texts[n], encodings[n], states))
            del states  # a part of a batch, all of which it would keep
            count()
            tokens += len(encodings[n])
            if tokens >= TRIM_TOKENS:
                tokens = 0
                _give_back()
    except ValueError as error:
        raise ValueError(f"in the lines from {block.first + 1} on: {error}") from error
    writer.finish()


def _give_back() -> None:
    """Return free memory to the system, where the C library is one that keeps it.

    Batches differ a little in size, so that what one leaves does not fit the next: without this the
    process grew by 600 MB in 12,000 lines (minilm, all states).
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _writer(bert: Bert, job: Job, manifest: dict[str, Any]) -> Writer:
    row, output = row_shape(job.reading, bert.config), Path(job.output)
    if job.kind == "jsonl":
        return JsonWriter(output, manifest["layers"], manifest["files"])
    kind = NpyWriter if job.kind == "npy" else ShardWriter
    return kind(output, row, job.store_dtype, manifest["files"])
