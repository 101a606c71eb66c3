"""What `minibert` does for a port: names, verify, record, judge, live.

And how the options of any command say where its model is. torch is imported where a command needs
it, since it takes a second. Read next: cli.py.
"""

import argparse
from typing import Any

from minibert.config import CheckpointError
from minibert.hub import ModelFiles, find_files


def where(options: argparse.Namespace) -> dict[str, Any]:
    """Options that say where a model is, as arguments; those that the command has."""
    names = ("revision", "local_files_only", "allow_pickle")
    return {name: value for name, value in vars(options).items() if name in names}


def files_of(options: argparse.Namespace) -> ModelFiles:
    """The files of the model, before any of them is read but config.json."""
    return find_files(options.model, options.revision, options.local_files_only)


def refuse_without_model(options: argparse.Namespace) -> None:
    """These options mean nothing without one."""
    for name, value in where(options).items():
        if value:
            raise ValueError(f"--{name.replace('_', '-')} goes with --model")


def names(options: argparse.Namespace) -> None:
    """Print the map of names, with shapes if there is a model."""
    from minibert.names import describe

    config = None
    if options.model is not None:
        from minibert.checkpoint import read_config

        config = read_config(files_of(options))
    else:
        refuse_without_model(options)
    print(describe(config))


def verify_numbers(options: argparse.Namespace) -> None:
    """Run the published numbers, and fail if one is wrong."""
    from minibert.verify import require_pass, to_json, to_table, verify

    numbers = verify(options.model, **where(options))
    print(to_json(numbers) if options.json else to_table(numbers))
    require_pass(numbers)


def record_bundle(options: argparse.Namespace) -> None:
    """Write every tensor of fixed inputs."""
    from minibert.bundle import record

    model, head = _model_and_head(options, files_of(options))
    record(model, options.bundle, head)


def _model_and_head(options: argparse.Namespace, files: ModelFiles) -> tuple[Any, Any]:
    import torch

    from minibert.checkpoint import read_head_config, read_model_and_head

    head = read_head_config(files, options.head)
    dtype = getattr(torch, options.dtype)
    return read_model_and_head(files, "cpu", dtype, options.allow_pickle, head)


def judge_dump(options: argparse.Namespace) -> None:
    """Name the first tensor of a dump that differs, and the likely mistake."""
    import torch

    from minibert.bundle import read_bundle, read_dump
    from minibert.checkpoint import read_model
    from minibert.mistakes import diagnose
    from minibert.parity import compare, to_json, to_table

    if options.model is None:
        refuse_without_model(options)
    expected, got = read_bundle(options.bundle), read_dump(options.dump)
    comparison = compare(expected, got)
    if comparison.first is not None and options.model is not None:
        model = read_model(files_of(options), "cpu", torch.float32, options.allow_pickle)
        comparison = comparison._replace(why=diagnose(model, expected, got))
    print(to_json(comparison) if options.json else to_table(comparison))
    if comparison.first is not None:
        raise CheckpointError(f"{options.dump} differs from {options.bundle}")


def compare_live(options: argparse.Namespace) -> None:
    """Compare with transformers, run beside."""
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError("transformers is not installed; pip install transformers") from error

    from minibert.bundle import fixed_inputs
    from minibert.head_config import HEADS
    from minibert.parity import live, to_json, to_table

    files = files_of(options)
    model, head = _model_and_head(options, files)
    folder = files.require("config.json").parent  # and by now the weights, whole or in shards
    kind = getattr(transformers, HEADS[head.config.name] if head else "BertModel")
    theirs = kind.from_pretrained(folder, attn_implementation="eager").to(
        next(model.parameters()).dtype
    )
    comparison = live(model, theirs, fixed_inputs(model.config), head)
    print(to_json(comparison) if options.json else to_table(comparison))
    if comparison.first is not None:
        raise CheckpointError(f"{options.model} differs from transformers")
