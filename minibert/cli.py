"""The command `minibert`: what can be asked for, and how errors are told.

Commands that need no tensor don't import torch, which takes a second.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from minibert.config import CheckpointError
from minibert.hub import DEFAULT_MODEL, load_tokenizer
from minibert.lines import Lines
from minibert.options import file_options, parser, reading_options
from minibert.porting import (
    compare_live,
    files_of,
    judge_dump,
    names,
    record_bundle,
    refuse_without_model,
    verify_numbers,
    where,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: those of the command line when None.

    Returns:
        The exit status: 0, 1 for what failed, 2 for wrong use; 130 and 141 for an interrupt and
        for output that nobody reads to the end, as shells count.
    """
    options = parser().parse_args(_join_layers(sys.argv[1:] if arguments is None else arguments))
    try:
        if sys.stdout is None:
            raise OSError("cannot write: the output is closed")
        _RUN[options.command](options)
        sys.stdout.flush()
    except (CheckpointError, OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            # Python flushes once more at exit; let that go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        print(f"minibert: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def _extract(options: argparse.Namespace) -> None:
    # Here and not above, for the sake of the commands that don't need torch.
    import torch

    from minibert.extract import extract, extract_file, to_table
    from minibert.job import Job
    from minibert.loading import load, pack
    from minibert.packing import refusal
    from minibert.shards import to_json

    given = file_options(options)
    existing = given.pop("existing", "continue")
    lines = _lines(options) if options.output is None else None
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    files = files_of(options)
    dtype = getattr(torch, options.dtype)
    bert = load(
        options.model,
        revision=files.commit or options.revision,
        device=options.device,
        dtype=dtype,
        allow_pickle=options.allow_pickle,
        local_files_only=options.local_files_only,
    )
    reading = bert.reading(**reading_options(options))
    if lines is None:
        also = {name: getattr(options, name) for name in ("format", "field", "max_length")}
        job = Job(options.input, options.output, reading, **also, **given)
        bert = bert if refusal(bert.model) else pack(bert)  # once; the plain weights go
        _tell_what_was_cut(extract_file(bert, job, files, existing))
        return
    is_table = (options.format or ("table" if sys.stdout.isatty() else "jsonl")) == "table"
    for extracted in extract(bert, lines, reading, options.max_length):
        if is_table:
            print(to_table(extracted, shutil.get_terminal_size().columns))
        else:
            print(to_json(extracted))


def _tell_what_was_cut(manifest: dict[str, Any]) -> None:
    if manifest["cut"]:
        told = f"{manifest['cut']} of {manifest['done']['lines']} texts were cut"
        print(f"minibert: {told} to what the model reads", file=sys.stderr)


def _tokenize(options: argparse.Namespace) -> None:
    lines = _lines(options)
    tokenizer = load_tokenizer(options.model, **where(options))
    for line in lines:
        if options.json:
            print(json.dumps(dataclasses.asdict(tokenizer.encode(line)), ensure_ascii=False))
        elif options.trace:
            print(*(f"{step:>16}  {result}" for step, result in tokenizer.trace(line)), sep="\n")
        else:
            print(" ".join(tokenizer.tokenize(line)))


def _compare(options: argparse.Namespace) -> None:
    from minibert.senses import to_json, to_text

    if not (texts := list(_lines(options))):
        raise ValueError(f"{options.input} has no text")
    bert = _load(options, None)
    comparison = bert.compare(options.word, texts)
    text = to_text(comparison, texts, shutil.get_terminal_size().columns)
    print(to_json(comparison) if options.json else text)


def _fill(options: argparse.Namespace) -> None:
    from minibert.fill import to_json, to_table

    lines = _lines(options)
    bert = _load(options, "masked-lm")
    for number, line in enumerate(lines):
        blanks = bert.fill(line, options.top_k, options.targets)
        table = "\n" * (number > 0) + to_table(blanks)
        print(to_json(line, blanks) if _wants_json(options) else table)


def _next(options: argparse.Namespace) -> None:
    lines = _lines(options)
    if options.input is None and len(options.text) != 2:
        raise ValueError(f"give two TEXTs, got {len(options.text)}")
    bert = _load(options, "next-sentence")
    for line in lines:
        # A line of a file is a pair; on the command line the second TEXT comes next.
        first, bar, second = line.rpartition(" ||| ") if options.input else (line, "|", next(lines))
        if not bar:
            raise ValueError(f"expected a pair, A ||| B, got {line[:60]!r}")
        follows = bert.next_sentence(first, second)
        record = {"first": first, "second": second, "follows": follows}
        text = f"{follows:.6f}  {first} ||| {second}"
        print(json.dumps(record, ensure_ascii=False) if _wants_json(options) else text)


def _wants_json(options: argparse.Namespace) -> bool:
    return options.json or not sys.stdout.isatty()


def _lens(options: argparse.Namespace) -> None:
    from minibert.lens import lens_page
    from minibert.shards import write_output

    if not (texts := list(_lines(options))):
        raise ValueError(f"{options.input} has no text")
    page = lens_page(_load_with_any_head(options), texts, options.max_length)
    if options.output == "-":
        print(page, end="")
    else:
        write_output(Path(options.output), page.encode())


def _plot(options: argparse.Namespace) -> None:
    try:
        from minibert.pictures import Order, check_order, draw, draw_file, save_plot
    except ImportError as error:
        told = "matplotlib is not installed; pip install matplotlib"
        raise CheckpointError(told) from error

    order = Order(options.kind, options.what, options.head, Path(options.output))
    check_order(order)
    if order.kind == "senses":
        if options.model is not None:
            raise ValueError("plot senses has no --model: it reads a file")
        refuse_without_model(options)
        axes = draw_file(order)
    else:
        options.model = options.model or DEFAULT_MODEL
        axes = draw(_load(options, None), order)
    save_plot(axes, order.path)


_RUN: dict[str, Callable[[argparse.Namespace], None]] = {
    "extract": _extract,
    "tokenize": _tokenize,
    "compare": _compare,
    "lens": _lens,
    "plot": _plot,
    "fill": _fill,
    "next": _next,
    "names": names,
    "verify": verify_numbers,
    "record": record_bundle,
    "judge": judge_dump,
    "live": compare_live,
}


def _load(options: argparse.Namespace, head: str | None) -> Any:
    from minibert.loading import load

    return load(options.model, head=head, **where(options))


def _load_with_any_head(options: argparse.Namespace) -> Any:
    """With the head that was asked for; on "auto" one that cannot be had is told and left out."""
    if options.head != "auto":
        return _load(options, None if options.head == "none" else options.head)
    files_of(options)  # what the Hub lacks is not tried twice
    try:
        return _load(options, "auto")
    except CheckpointError as error:
        bert = _load(options, None)  # raises what is not the head's fault
        print(f"minibert: {error}; the page is made without", file=sys.stderr)
        return bert


def _lines(options: argparse.Namespace) -> Iterator[str]:
    """The texts of the command line or of the input file, which is opened at once."""
    if bool(options.text) == (options.input is not None):
        raise ValueError("give either TEXT or --input FILE")
    if options.input is None:
        return iter(options.text)
    return iter(Lines(options.input, getattr(options, "field", None)))


def _join_layers(arguments: Sequence[str]) -> list[str]:
    """Write `--layers -1,-2` as `--layers=-1,-2`: argparse would take "-1,-2" for an option."""
    joined: list[str] = []
    for number, argument in enumerate(arguments):
        if argument == "--":
            return [*joined, *arguments[number:]]
        if joined and joined[-1] in ("--layers", "--combine"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
