"""Every named tensor of a model, written down for other implementations: the bundle.

`record` makes a folder of two files:

    tensors.safetensors    fixed inputs, and every tensor of `TENSORS` for each of them
    bundle.json            the config, the cases, and the tensors in data flow with their shapes

A head's logits come last, as "logits"; those of pre-training as "prediction_logits" and
"seq_relationship_logits".

The key of a tensor is its case and its name: "padded/encoder.layers.0.attention.query". Whoever has
a BERT in another language reads "padded/input_ids", "padded/token_type_ids" and
"padded/attention_mask" (int64, (B, T)), and writes what it computes under the same keys, in any
floating dtype, to a safetensors file of its own: the dump. Part of the tensors will do. Scores are
those that the softmax reads: scaled, with the bias added. Heads are cut as in encoder.py.

Read next: parity.py, which compares.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from minibert.config import BertConfig, CheckpointError
from minibert.glossary import shown
from minibert.heads import Head, PretrainingOutput
from minibert.hooks import capture
from minibert.model import BertModel
from minibert.names import NAMES, in_any_layer, tensor_names

# What is left out: outside of training, each is another tensor once more.
_AGAIN = ("dropout", "layers.i.attention", "layers.i.feed_forward", "encoder", "pooler.activation")

# Every tensor that is compared, in data flow: its row in the map of names.
TENSORS = {row.name: row for row in NAMES if not row.name.endswith(_AGAIN)}

LOGITS = ("logits", *(f"{name}_logits" for name in PretrainingOutput._fields))

_FORMAT = "minibert bundle 1"
_CASES = ("single", "short", "pair", "padded", "long", "longest")


class Inputs(NamedTuple):
    """What BertModel reads: three times int64, (B, T)."""

    input_ids: Tensor
    token_type_ids: Tensor
    attention_mask: Tensor


def fixed_inputs(config: BertConfig) -> dict[str, Inputs]:
    """The cases of a bundle: the same on every machine, without a random number.

    Returns:
        single: one token. short: at most 8. pair: at most 16, the second half in segment 1. padded:
        three rows of at most 12, one whole, one padded on the right, one on the left and with a
        hole. long: at most 128. longest: as many as there are positions.
    """
    most = config.max_position_embeddings
    lengths = dict(zip(_CASES, (1, 8, 16, 12, 128, most), strict=True))
    cases = {}
    for case, length in lengths.items():
        rows, tokens = 3 if case == "padded" else 1, min(length, most)
        places = torch.arange(rows * tokens).view(rows, tokens)
        ids = (places * 7919 + 101) % config.vocab_size  # a prime, so that ids don't repeat soon
        segments, mask = torch.zeros_like(ids), torch.ones_like(ids)
        if case == "pair":
            segments[:, tokens // 2 :] = min(1, config.type_vocab_size - 1)
        if case == "padded":
            mask[1, (tokens + 1) // 2 :] = 0
            mask[2, : tokens // 3] = 0
            mask[2, tokens // 2 : tokens - 1][:1] = 0  # never the last: a row keeps a real token
        cases[case] = Inputs(ids, segments, mask)
    return cases


def compared_names(model: BertModel) -> list[str]:
    """The names of `TENSORS` that a model has, in data flow."""
    names = tensor_names(model.config.num_hidden_layers, model.pooler is not None)
    return [name for name in names if in_any_layer(name) in TENSORS]


@torch.no_grad()
def trace(
    model: BertModel, inputs: Inputs, names: list[str], head: Head | None = None
) -> dict[str, Tensor]:
    """Run the model and keep the named tensors, on the CPU, in the order of the names.

    With a head its logits come after them.

    Raises:
        ValueError: if the model is in training mode, where dropout makes every run another.
    """
    if model.training or (head is not None and head.training):
        raise ValueError("the model is in training mode, in which no two runs agree; call eval()")
    device = model.embeddings.word.weight.device
    with capture(model, names) as seen:
        output = model(*(tensor.to(device) for tensor in inputs))
    kept = {name: seen[name] for name in names}
    if head is not None:
        kept |= name_logits(head(output))
    return {name: tensor.cpu() for name, tensor in kept.items()}


def name_logits(logits: Tensor | PretrainingOutput) -> dict[str, Tensor]:
    """What a head gave, by the names of `LOGITS`."""
    if isinstance(logits, Tensor):
        return {"logits": logits}
    return {f"{name}_logits": tensor for name, tensor in logits._asdict().items()}


def trace_cases(
    model: BertModel, cases: Mapping[str, Inputs], head: Head | None = None
) -> dict[str, Tensor]:
    """The inputs of each case, then every tensor of `TENSORS`, in data flow and by their keys.

    The logits of a head come last.
    """
    names = compared_names(model)
    tensors = {
        f"{case}/{name}": tensor
        for case, inputs in cases.items()
        for name, tensor in zip(Inputs._fields, inputs, strict=True)
    }
    traced = {case: trace(model, inputs, names, head) for case, inputs in cases.items()}
    names = list(next(iter(traced.values()), {}))
    return tensors | {f"{case}/{name}": traced[case][name] for name in names for case in cases}


def record(model: BertModel, folder: str | os.PathLike[str], head: Head | None = None) -> None:
    """Write a bundle for this model, in the dtype that it has.

    Args:
        model: in eval mode. In float64 the bundle is the truth for every other dtype.
        folder: where to; is made if need be, and files of an older bundle are replaced. With
            minilm it takes 0.3 GB in float32, with bert-base 0.8 GB; twice that in float64.
        head: of the model, in eval mode: its logits are written, too.
    """
    cases, folder = fixed_inputs(model.config), Path(folder)
    tensors = trace_cases(model, cases, head)
    shapes = {name: tuple(inputs.input_ids.shape) for name, inputs in cases.items()}
    about = {
        "format": _FORMAT,
        "dtype": str(model.embeddings.word.weight.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "config": dataclasses.asdict(model.config),
        "cases": {case: {"B": batch, "T": tokens} for case, (batch, tokens) in shapes.items()},
        "head": None if head is None else head.config.to_dict(),
        "tensors": list(dict.fromkeys(key.partition("/")[2] for key in tensors))[3:],
        "shapes": {name: row.shape for name, row in TENSORS.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    # Not save_file: it refuses tensors that share memory, and leaves a file only its owner reads.
    whole = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
    (folder / "tensors.safetensors").write_bytes(save(whole))
    (folder / "bundle.json").write_text(json.dumps(about, indent=1), "utf-8")


def read_bundle(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read what `record` wrote, in data flow.

    Raises:
        CheckpointError: if a file is missing, broken, or not of one bundle.
    """
    path = Path(folder) / "bundle.json"
    try:
        about: dict[str, Any] = json.loads(path.read_text("utf-8"))
        keys = [f"{case}/{name}" for case in about["cases"] for name in Inputs._fields]
        keys += [f"{case}/{name}" for name in about["tensors"] for case in about["cases"]]
        if about["format"] != _FORMAT:
            raise ValueError(f"its format is {about['format']!r:.80}, expected {_FORMAT!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} is not of a bundle that record wrote: {reason}") from error
    tensors = read_dump(Path(folder) / "tensors.safetensors")
    if tensors.keys() != set(keys):
        raise CheckpointError(f"{folder}: bundle.json and tensors.safetensors are of two bundles")
    return {key: tensors[key] for key in keys}


def read_dump(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors file; raises CheckpointError if it is none."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or shown(str(error), 200)
        raise CheckpointError(f"{path} is not a safetensors file: {reason}") from error
