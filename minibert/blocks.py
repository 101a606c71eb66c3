"""Blocks of lines, as they go through the model: read, tokenized, and bounded in size.

The reading of a line is that of google-research/bert@eedf571 extract_features.py: " ||| " parts a
pair, at the last place where it stands. Read next: extract.py.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from math import prod
from typing import NamedTuple

import numpy as np

from minibert.batches import room_in_windows
from minibert.bert import Bert
from minibert.encoding import Encoding
from minibert.job import Job, row_shape
from minibert.lines import Lines, Position
from minibert.vectors import Reading, Text, Vectors, join, read

# What a block has at most, and what one text has, so that memory is bounded. The block decides
# which texts share a batch, and with that the last bits: a change makes another format.
BLOCK_LINES = 8192
BLOCK_TOKENS = 1 << 17
BLOCK_JSON = 1 << 26  # bytes of JSON lines, which are put in order in memory
TEXT_CHARACTERS = 1 << 20
TEXT_BYTES = 100 << 20  # of the states of a text in several windows


class Block(NamedTuple):
    """Lines that go through the model together."""

    first: int  # number of the first
    texts: list[Text]
    encodings: list[Encoding]
    layout: Vectors  # which rows they will have
    cut: int  # how many texts were cut to what the model reads
    end: Position  # in the input, behind them


def read_blocks(bert: Bert, job: Job, lines: Lines, texts: Iterator[str]) -> Iterator[Block]:
    """Encode texts, of which `lines` knows the position, block by block.

    Raises:
        ValueError: if a text cannot be read or is too long; names the line.
    """
    most = BLOCK_TOKENS
    if job.kind == "jsonl" and job.reading.unit != "sentence":
        numbers = prod(row_shape(job.reading, bert.config))
        most = min(most, BLOCK_JSON // (11 * numbers))  # a number takes some 11 characters
    while True:
        block = Block(lines.position.lines, [], [], join([]), 0, lines.position)
        tokens = cut = 0
        for line in islice(texts, BLOCK_LINES):
            text, encoding, was_cut = encode_line(bert, job, line, lines.position.lines)
            block.texts.append(text)
            block.encodings.append(encoding)
            cut += was_cut
            tokens += len(encoding)
            if tokens >= most:
                break
        if not block.texts:
            return
        layout = join(list(map(_layout, repeat(job.reading), block.texts, block.encodings)))
        yield block._replace(layout=layout, cut=cut, end=lines.position)


def _layout(reading: Reading, text: Text, encoding: Encoding) -> Vectors:
    """The rows that a text will have, with vectors of no numbers."""
    return read(reading, text, encoding, np.empty((len(encoding), 0), np.float32))


def read_pair(line: str) -> Text:
    """A text, or the two that stand around " ||| "."""
    first, separator, last = line.rstrip().rpartition(" ||| ")
    # Not a pair if the first text is nothing: Google's script takes the white space off before.
    return Text(first, last) if separator and first.strip() else Text(line)


def encode_line(bert: Bert, job: Job, line: str, number: int) -> tuple[Text, Encoding, bool]:
    """The text of line `number` (from 1), its tokens, and whether they were cut for the model."""
    if not isinstance(line, str):
        raise ValueError(f"line {number}: a text must be str, got {type(line).__name__}")
    if len(line) > TEXT_CHARACTERS:
        raise ValueError(f"line {number} has more than {TEXT_CHARACTERS} characters: split it")
    text = read_pair(line)
    most = bert.config.max_position_embeddings
    try:
        encoding = bert.tokenizer.encode(text.first, text.second, job.max_length)
        is_long = len(encoding) > most
        if is_long and job.long == "truncate":
            return text, bert.tokenizer.encode(text.first, text.second, most), True
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error
    size = 4 * len(encoding) * prod(row_shape(job.reading, bert.config))
    if is_long and job.long == "error":
        told = f"{len(encoding)} tokens are more than the {most} positions of this model; cut"
        raise ValueError(f"line {number}: {told} (--max-length {most}) or split the text")
    if is_long:
        room_in_windows(f"line {number}", encoding, most, job.stride)
    if is_long and size > TEXT_BYTES:
        told = f"the states of {len(encoding)} tokens take more than {TEXT_BYTES >> 20} MB at once"
        raise ValueError(f"line {number}: {told}; cut (--long truncate) or split the text")
    return text, encoding, False


def read_ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """Read and tokenize the next block while the last one is worked on."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = thread.submit(next, blocks, None)
            yield block
