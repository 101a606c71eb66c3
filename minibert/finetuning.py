"""Fine-tuning: batches of similar lengths, the loss of one, and what a tuned model predicts.

Texts of similar lengths go together, so that little is padded; which ones do is drawn anew for each
epoch. Follows [D18] section 4 and appendix A.3. Read next: lamb.py.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count, groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minibert.batches import BATCH_TOKENS
from minibert.features import IGNORED, Feature
from minibert.heads import BertWithHead, LinearHead

_POOL = 50  # batches that are sorted by length together


class Batch(NamedTuple):
    """Features in one tensor each, B of up to T tokens."""

    input_ids: Tensor  # int64, (B, T)
    token_type_ids: Tensor  # int64, (B, T)
    attention_mask: Tensor | None  # int64, (B, T); None where all are of one length
    labels: Tensor  # (B,), (B, T) or (B, 2), as in Feature


def grouped(
    lengths: Sequence[int], size: int, parts: int = 1, seed: int = 0, start: int = 0
) -> Iterator[list[list[int]]]:
    """Draw batches of similar lengths, epoch after epoch, without end.

    The examples are shuffled; fifty batches at a time are sorted by length and cut; and then the
    batches of the epoch are shuffled, so that lengths come in no order.

    Args:
        lengths: in tokens, of each example.
        size: examples in a batch; the last of an epoch may have fewer.
        parts: into how many micro-batches each is dealt out.
        seed: of the draws.
        start: the first step, counted from 0.

    Yields:
        For each step its micro-batches: numbers of examples.
    """
    for epoch in count(start // steps_per_epoch(len(lengths), size)):
        draw = random.Random(f"{seed} {epoch}")
        order = draw.sample(range(len(lengths)), len(lengths))
        batches = []
        for begin in range(0, len(order), _POOL * size):
            pool = sorted(order[begin : begin + _POOL * size], key=lengths.__getitem__)
            batches += [pool[n : n + size] for n in range(0, len(pool), size)]
        draw.shuffle(batches)
        for batch in batches[start % len(batches) :]:
            yield [batch[part::parts] for part in range(min(parts, len(batch)))]
        start = 0


def steps_per_epoch(examples: int, size: int) -> int:
    """How many batches `grouped` makes of all examples.

    >>> steps_per_epoch(65, 32)
    3
    """
    return -(-examples // size)


def collate(features: Sequence[Feature], device: torch.device, pad_id: int = 0) -> Batch:
    """Features as tensors, padded to the longest: with pad_id, segment 0 and the label -100."""
    lengths = torch.tensor([len(feature.input_ids) for feature in features])
    longest = int(lengths.max())
    ids = _stack([feature.input_ids for feature in features], longest, pad_id).long()
    positions = torch.arange(longest)
    is_real = positions < lengths[:, None]
    seconds = torch.tensor([feature.second for feature in features])
    segments = ((positions >= seconds[:, None]) & is_real).long()
    mask = None if bool(is_real.all()) else is_real.long().to(device)
    if features[0].label.shape == features[0].input_ids.shape:
        labels = _stack([feature.label for feature in features], longest, IGNORED)
    else:
        labels = torch.from_numpy(np.stack([feature.label for feature in features]))
    return Batch(ids.to(device), segments.to(device), mask, labels.to(device))


def _stack(rows: Sequence[NDArray[Any]], longest: int, filler: int) -> Tensor:
    stacked = np.full((len(rows), longest), filler, rows[0].dtype)
    for number, row in enumerate(rows):
        stacked[number, : len(row)] = row
    return torch.from_numpy(stacked)


def loss_of(model: BertWithHead, batch: Batch) -> tuple[Tensor, int]:
    """The sum of the losses of all that has a label in a batch, and how many that are."""
    head = model.head
    if not isinstance(head, LinearHead):
        raise ValueError(f"the head {head.config.name} is of pre-training")
    logits = head(model.bert(batch.input_ids, batch.token_type_ids, batch.attention_mask))
    examples = len(batch.labels)
    if head.config.name == "token-classification":
        examples = int((batch.labels != IGNORED).sum())
        if examples == 0:  # a window of nothing but the ends of a word
            return logits.sum() * 0, 0
    if head.config.name == "question-answering" and batch.attention_mask is not None:
        # An answer cannot stand in padding. Google's code and Hugging Face's let it, and their loss
        # changes with what else is in a batch.
        is_padding = batch.attention_mask[..., None] == 0
        logits = logits.masked_fill(is_padding, torch.finfo(logits.dtype).min)
    return head.loss(logits, batch.labels) * examples, examples


def predict(model: BertWithHead, features: Sequence[Feature]) -> list[NDArray[np.float32]]:
    """The logits of each feature, on the CPU; equal lengths together, so that nothing is padded.

    Args:
        model: in eval mode.
        features: whose labels are not looked at.

    Returns:
        For each feature (labels,), or (T, labels) of a head that reads each token.
    """
    device = next(model.parameters()).device
    logits: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(features)
    order = sorted(range(len(features)), key=lambda n: len(features[n].input_ids), reverse=True)
    for length, group in groupby(order, key=lambda n: len(features[n].input_ids)):
        same, size = list(group), max(1, BATCH_TOKENS // length)
        for begin in range(0, len(same), size):
            rows = same[begin : begin + size]
            batch = collate([features[n] for n in rows], device)
            with torch.inference_mode():
                output = model(batch.input_ids, batch.token_type_ids)
            for n, row in zip(rows, output.float().cpu().numpy(), strict=True):
                logits[n] = row
    return logits


def best_answer(
    start: NDArray[np.float32], end: NDArray[np.float32], inside: NDArray[np.bool_], longest: int
) -> tuple[float, int, int]:
    """The likeliest span of a window: [D18] section 4.2, the largest S T_i + E T_j with j >= i.

    Args:
        start: (T,), logits that the answer starts here.
        end: (T,), that it ends here.
        inside: (T,), which tokens are of the context.
        longest: tokens that an answer has at most.

    Returns:
        (sum of both logits, first token, last token); minus infinity if no token is inside.
    """
    scores = start[:, None] + end[None, :]
    is_span = np.tri(len(start), k=longest - 1, dtype=bool) & np.tri(len(start), dtype=bool).T
    # is_span[i, j]: i <= j < i + longest
    scores = np.where(is_span & inside[:, None] & inside[None, :], scores, -np.inf)
    first, last = divmod(int(scores.argmax()), len(start))
    return float(scores[first, last]), first, last
