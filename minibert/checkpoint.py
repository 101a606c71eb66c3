"""From files to a model: every tensor by its name, exactly, or an error that says which.

Loading is total: whatever is missing, left over or of another shape is an error; no weight
ever keeps a random start. Read next: vectors.py.
"""

import functools
import logging
import math
import os
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from minibert.config import BertConfig, CheckpointError
from minibert.files import read_object
from minibert.glossary import (
    BIAS,
    DECODER,
    HEAD_NAMES,
    SECOND_BIAS,
    WORD,
    checkpoint_names,
    head_names,
    modern_name,
    shown,
)
from minibert.head_config import HEADS, HeadConfig
from minibert.heads import Head, make_head
from minibert.hub import ModelFiles, find_files
from minibert.model import BertModel
from minibert.weights import COUNTS, DTYPES, Stored, enough_memory, find_weights, read_tensor

# What else a BERT checkpoint may hold: heads that nobody asked for, of these names or, where the
# encoder's have a prefix, of any; and a buffer of old ones, which only counts 0, 1, 2, ...
_HEADS = ("cls.", "classifier.", "qa_outputs.")
_ENCODER = ("bert.", "embeddings.", "encoder.", "pooler.")
_COUNTER = "embeddings.position_ids"
_MOST_POSITIONS = 1 << 20

# Set to 1, it admits weights that are NaN or infinite.
_ALLOW_NAN = "MINIBERT_ALLOW_NAN"

_log = logging.getLogger(__name__)


def read_config(files: ModelFiles) -> BertConfig:
    """Read config.json.

    Raises:
        CheckpointError: if it is missing, not JSON, or not a BERT that minibert computes.
    """
    path = files.require("config.json")
    values = read_object(path)
    if values.get("auto_map"):
        _say_that_code_is_not_run(path)
    try:
        return BertConfig.from_dict(values)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


@functools.cache  # a load reads config.json more than once
def _say_that_code_is_not_run(path: Path) -> None:
    _log.warning("%s asks for code of its own (auto_map); minibert never runs it", path)


def load_model(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    allow_pickle: bool = False,
    local_files_only: bool = False,
) -> BertModel:
    """Load the encoder of a model, in eval mode.

    Args:
        source: a name on the Hub, a folder, or "minilm", as for find_files.
        revision: branch, tag or commit of a Hub model.
        device: where the weights go.
        dtype: floating dtype of the weights, whichever the file has.
        allow_pickle: read pytorch_model.bin where there is no model.safetensors.
        local_files_only: ask the Hub nothing; take its cache as it is.

    Returns:
        A BertModel, without a pooler if the checkpoint has none.

    Raises:
        ValueError: if device or dtype cannot be used.
        CheckpointError: if a file is missing or broken, or its tensors are not the ones that
            config.json describes, or not finite numbers.
    """
    files = find_files(source, revision, local_files_only)
    return read_model(files, device, dtype, allow_pickle)


def read_head_config(files: ModelFiles, head: str | None) -> HeadConfig | None:
    """What config.json says of a head.

    Args:
        files: of the model.
        head: its name; or "auto": the one that "architectures" names, if any; or None.

    Raises:
        ValueError: if there is no such head.
        CheckpointError: if config.json names one that minibert lacks, or describes it wrongly.
    """
    if head not in (None, "auto", *HEADS):
        raise ValueError(f"head must be None, 'auto' or one of {', '.join(HEADS)}, got {head!r}")
    path = files.require("config.json")
    values = read_object(path)
    if head == "auto":
        asked = values.get("architectures") or []
        names = asked if isinstance(asked, list) else []
        named = [name for name, theirs in HEADS.items() if theirs in names]
        if not named and asked not in ([], ["BertModel"]):
            raise CheckpointError(f"{path} names {asked!r:.80}, a head that minibert does not have")
        head = named[0] if named else None
    try:
        return None if head is None else HeadConfig.from_dict(head, values)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_model(
    files: ModelFiles, device: str | torch.device, dtype: torch.dtype, allow_pickle: bool
) -> BertModel:
    """Load the encoder from files that were found; raises as load_model does."""
    return read_model_and_head(files, device, dtype, allow_pickle, None)[0]


def read_model_and_head(
    files: ModelFiles,
    device: str | torch.device,
    dtype: torch.dtype,
    allow_pickle: bool,
    head: HeadConfig | None,
) -> tuple[BertModel, Head | None]:
    """Load the encoder, and a head if one is asked for; raises as load_model does."""
    _check_target(device, dtype)
    config = read_config(files)  # before the weights: another architecture is not downloaded
    path, tensors = find_weights(files, allow_pickle)
    with enough_memory(path):
        stored = _by_modern_name(path, tensors, head)
    if head is not None and not stored.keys() & HEAD_NAMES[head.name].values():
        raise CheckpointError(f"{path} has no {head.name} head: load another, or give it a new one")
    count = config.num_hidden_layers
    if 8 * count > len(stored):  # not even half of them
        raise CheckpointError(f"{path} has {len(stored)} tensors, too few for {count} layers")
    has_pooler = any(name.startswith("pooler.") for name in stored)
    if head is not None and head.reads_pooler and not has_pooler:
        raise CheckpointError(f"{path} has no pooler, which the head {head.name} reads")
    names = {f"bert.{own}": name for own, name in checkpoint_names(config, has_pooler).items()}
    names |= {f"head.{own}": name for own, name in head_names(head).items()}
    _check_total(path, stored, set(names.values()))  # before a module is made, which takes longer
    with torch.device("meta"):  # shapes without memory: nothing is drawn only to be overwritten
        model = BertModel(config, has_pooler)
        made = None if head is None else make_head(model, head)
    whole = nn.ModuleDict({"bert": model} if made is None else {"bert": model, "head": made})
    shapes = {names[own]: tensor.shape for own, tensor in whole.state_dict().items()}
    _check_shapes(path, stored, shapes)
    with enough_memory(path):
        read = {name: read_tensor(stored[name]).to(device, dtype) for name in shapes}
    _check_finite(path, {stored[name].name: tensor for name, tensor in read.items()})
    whole.load_state_dict({own: read[name] for own, name in names.items()}, assign=True)
    whole.eval()
    return model, made


def _by_modern_name(
    path: Path, tensors: list[Stored], head: HeadConfig | None
) -> dict[str, Stored]:
    """The tensors of the encoder and of one head under today's names, without other heads."""
    left_out = _other_heads([tensor.name for tensor in tensors], head)
    stored: dict[str, Stored] = {}
    for tensor in tensors:
        if tensor.name not in left_out:
            twin = stored.setdefault(modern_name(tensor.name), tensor)
            if twin is not tensor:
                names = f"{shown(twin.name)} and {shown(tensor.name)}"
                raise CheckpointError(f"{path} has {names}, which are the same")
    _check_prefix(path, stored)
    if _COUNTER in stored:
        _check_counter(path, stored.pop(_COUNTER))
    if head is not None and not head.tied and SECOND_BIAS in stored:
        stored[BIAS] = stored.pop(SECOND_BIAS)  # the decoder's; then nothing reads the other
    _join(path, stored, BIAS, SECOND_BIAS)
    if head is not None and head.tied:
        _join(path, stored, WORD, DECODER)
    if left_out:
        _log.info("%s: left out the heads: %s", path, _list(left_out))
    return stored


def _other_heads(names: list[str], head: HeadConfig | None) -> set[str]:
    """Those that belong to heads which nobody asked for."""
    wanted = set() if head is None else {*HEAD_NAMES[head.name].values()}
    wanted |= {SECOND_BIAS} if BIAS in wanted else set()
    has_prefix = any(name.startswith("bert.encoder.") for name in names)
    return {
        name
        for name in names
        if (modern := modern_name(name)) not in wanted
        and (modern.startswith(_HEADS) or (has_prefix and not name.startswith(_ENCODER)))
    }


def _check_prefix(path: Path, stored: dict[str, Stored]) -> None:
    """Say so if a wrapper around the model has put its name before all others."""
    for name in stored:
        prefix, _, rest = name.partition(".")
        if WORD not in stored and modern_name(rest) == WORD:
            told = f"the names of a BERT with {shown(prefix)}. before them"
            raise CheckpointError(f"{path} has {told}; save it without that")


def _join(path: Path, stored: dict[str, Stored], name: str, second_name: str) -> None:
    """Of one tensor under two names keep the first; both must say the same."""
    if second_name not in stored:
        return
    second = stored.pop(second_name)
    first = stored.setdefault(name, second)
    if first.shape != second.shape or not torch.equal(read_tensor(first), read_tensor(second)):
        raise CheckpointError(
            f"{path}: {second.name} is not {first.name}, though config.json ties them; for a "
            "decoder of its own, tie_word_embeddings must be false there"
        )


def _check_counter(path: Path, stored: Stored) -> None:
    """position_ids must be what every BERT counts anyway, or the positions are others."""
    is_small = stored.dtype in COUNTS and math.prod(stored.shape) <= _MOST_POSITIONS
    if not is_small or read_tensor(stored).flatten().tolist() != [*range(math.prod(stored.shape))]:
        raise CheckpointError(f"{path}: {stored.name} does not count 0, 1, 2, ...: not supported")


def _check_total(path: Path, stored: dict[str, Stored], names: set[str]) -> None:
    """Compare what a file has with what the model needs: all of it, and nothing else."""
    problems = []
    if missing := names - stored.keys():
        problems.append(f"lacks {_list(missing)}")
    if unexpected := [stored[name].name for name in stored.keys() - names]:
        problems.append(f"has unexpected {_list(unexpected)}")
    if problems:
        raise CheckpointError(f"{path} does not fit its config.json: it {'; '.join(problems)}")


def _check_shapes(path: Path, stored: dict[str, Stored], shapes: dict[str, torch.Size]) -> None:
    wrong = [
        f"{stored[name].name} {stored[name].dtype} {list(stored[name].shape)} for {list(shape)}"
        for name, shape in shapes.items()
        if stored[name].shape != shape or stored[name].dtype not in DTYPES
    ]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit its config.json: it has misshapen {_list(wrong)}"
        )


def _check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    # A sum is not finite if a summand is not, and is faster; only when it is not, look closely.
    wrong = [
        name
        for name, tensor in tensors.items()
        if not tensor.sum().isfinite() and not tensor.isfinite().all()
    ]
    if wrong and os.environ.get(_ALLOW_NAN) != "1":
        raise CheckpointError(
            f"{path} has numbers that are NaN or infinite in this dtype, in {_list(wrong)}; "
            f"{_ALLOW_NAN}=1 in the environment admits them"
        )


def _list(names: Collection[str]) -> str:
    """Sorted, at most ten, and how many more.

    >>> _list(["b", "a"])
    '2 tensors: a, b'
    """
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    noun = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names)} {noun}: {', '.join(map(shown, sorted(names)[:10]))}{more}"


def _check_target(device: str | torch.device, dtype: torch.dtype) -> None:
    if dtype not in DTYPES.values():
        known = ", ".join(str(known) for known in DTYPES.values())
        raise ValueError(f"dtype must be one of {known}, got {dtype}")
    try:
        torch.zeros(1, device=device).tolist()  # "meta" has a device but no numbers
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"device {str(device)!r} cannot be used here: {reason}") from error
