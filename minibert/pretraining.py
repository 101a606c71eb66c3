"""Pre-training: instances in batches, and the loss of both tasks.

A step takes the next instances in their random order. Then it sorts them by length, and cuts them
into micro-batches: order within a step changes nothing, and so hardly anything is padded. Only what
is to be predicted goes through the masked-LM head, about a seventh of all tokens; its logits, V for
each, are most of what a small model computes. Follows [D18] section 3.1 and appendix A.2. Read
next: options.py.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minibert.heads import BertWithHead, PretrainingOutput
from minibert.instance_files import Instances
from minibert.instances import Instance
from minibert.model import BertOutput


class Batch(NamedTuple):
    """Some instances, padded to the longest of them."""

    input_ids: Tensor  # (B, T), int64
    token_type_ids: Tensor  # the same
    attention_mask: Tensor  # the same, 1 = real, 0 = padding
    places: Tensor  # (N,), int64, in [0, B T): where in the batch is what is to be predicted
    pieces: Tensor  # (N,), int64: what stood there
    is_random: Tensor  # (B,), int64: the class of each pair for the next-sentence head
    weight: float  # instances for each piece to be predicted, in the whole step


def batch(instances: Sequence[Instance], weight: float, pad: int) -> Batch:
    """Put instances into tensors.

    Args:
        instances: one at least.
        weight: as in Batch.
        pad: the id of [PAD].
    """
    lengths = [len(instance.input_ids) for instance in instances]
    width = max(lengths)
    ids = np.full((len(instances), width), pad, np.int64)
    segments, mask = np.zeros_like(ids), np.zeros_like(ids)
    for row, (instance, length) in enumerate(zip(instances, lengths, strict=True)):
        ids[row, :length] = instance.input_ids
        segments[row, instance.first : length] = 1
        mask[row, :length] = 1
    places = [np.asarray(i.positions, np.int64) + row * width for row, i in enumerate(instances)]
    pieces = [np.asarray(i.labels, np.int64) for i in instances]
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(segments),
        torch.from_numpy(mask),
        torch.from_numpy(np.concatenate(places)),
        torch.from_numpy(np.concatenate(pieces)),
        torch.tensor([int(i.is_random_next) for i in instances]),
        weight,
    )


def steps(
    instances: Instances, batch_size: int, micro_batch: int, seed: int
) -> Callable[[int], Iterator[list[Batch]]]:
    """A source of batches for training.Task: from any step on, the same each time.

    Args:
        instances: are gone through again and again.
        batch_size: instances of a step.
        micro_batch: how many are computed at once, at most.
        seed: of their order.

    Raises:
        ValueError: if a size is less than 1.
    """
    if batch_size < 1 or micro_batch < 1:
        raise ValueError(f"a batch has 1 instance or more, got {batch_size} and {micro_batch}")
    pad = instances.tokenizer.special_ids["[PAD]"]

    def begin(first: int) -> Iterator[list[Batch]]:
        stream = instances.shuffled(seed, first * batch_size)
        while True:
            step = sorted(islice(stream, batch_size), key=lambda i: len(i.input_ids))
            weight = batch_size / max(1, sum(len(i.positions) for i in step))
            parts = range(0, batch_size, micro_batch)
            yield [batch(step[n : n + micro_batch], weight, pad) for n in parts]

    return begin


def predict(model: BertWithHead, batch: Batch) -> PretrainingOutput:
    """Logits (N, V) of the pieces to be predicted, and only these, and (B, 2) of the pairs."""
    output = model.bert(batch.input_ids, batch.token_type_ids, batch.attention_mask)
    chosen = output.last_hidden_state.flatten(0, 1)[batch.places]  # (N, H)
    logits: PretrainingOutput = model.head(BertOutput(chosen, output.pooler_output))
    return logits


def loss(model: BertWithHead, batch: Batch) -> tuple[Tensor, int]:
    """For training.Task: the loss of a micro-batch, summed over its instances, and their number.

    Over a step the mean of it is the mean cross-entropy of the pieces, plus that of the pairs; not
    that of each micro-batch, some of which have fewer pieces to predict than others.
    """
    batch = _to_device(batch, model)
    logits = predict(model, batch)
    of_pieces = F.cross_entropy(logits.prediction, batch.pieces, reduction="sum")
    of_pairs = F.cross_entropy(logits.seq_relationship, batch.is_random, reduction="sum")
    return of_pieces * batch.weight + of_pairs, len(batch.is_random)


def evaluate(model: BertWithHead, instances: Instances, micro_batch: int) -> dict[str, float]:
    """How well a model in eval mode does on instances.

    Returns:
        `masked_lm` and `next_sentence`, the mean cross-entropies in nats, to be compared with
        `instances.unigram_entropy` and log 2; `loss`, their sum; `masked_accuracy` and
        `next_accuracy`, the shares that are right.
    """
    stream, pad = iter(instances), instances.tokenizer.special_ids["[PAD]"]
    sums = torch.zeros(6, dtype=torch.float64)
    while some := list(islice(stream, micro_batch)):
        one = _to_device(batch(some, 1.0, pad), model)
        logits = predict(model, one)
        for number, (scores, labels) in enumerate(
            ((logits.prediction, one.pieces), (logits.seq_relationship, one.is_random))
        ):
            error = F.cross_entropy(scores.float(), labels, reduction="sum").item()
            right = (scores.argmax(-1) == labels).sum().item()
            sums[3 * number : 3 * number + 3] += torch.tensor([error, right, len(labels)])
    pieces, right_pieces, count, pairs, right_pairs, pair_count = sums.tolist()
    return {
        "loss": pieces / count + pairs / pair_count,
        "masked_lm": pieces / count,
        "masked_accuracy": right_pieces / count,
        "next_sentence": pairs / pair_count,
        "next_accuracy": right_pairs / pair_count,
    }


def _to_device(batch: Batch, model: BertWithHead) -> Batch:
    device = next(model.parameters()).device
    tensors = {
        name: tensor.to(device) for name, tensor in batch._asdict().items() if name != "weight"
    }
    return batch._replace(**tensors)
