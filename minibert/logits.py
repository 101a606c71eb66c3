"""The logits of a head for many texts: what a model says, before it becomes an answer.

Texts go through the model as batches.py has it: equal lengths together, so that nothing is padded.
The head then reads the tokens that matter, and no others: for a masked LM each of them costs as
many numbers as the vocabulary has pieces. Read next: likelihood.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from minibert.batches import mixed_states
from minibert.encoding import Encoding
from minibert.heads import Head, LinearHead, MaskedLMHead, PretrainingHead
from minibert.model import BertModel, BertOutput
from minibert.vectors import Reading

_ROWS = 64  # vectors that a head reads at once: 8 MB of logits for 30,522 pieces


def list_texts(texts: str | Sequence[str]) -> list[str]:
    """One text or several as several; a ValueError for pairs, whose offsets would be mixed up."""
    if isinstance(texts, str):
        return [texts]
    many = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, tuple) else [texts]
    if wrong := [one for one in many if not isinstance(one, str)]:
        got = type(wrong[0]).__name__
        raise ValueError(f"texts must be a str or a list of str; no pairs here, got {got}")
    return [str(one) for one in many]


def find_part(head: Head | None, name: str) -> MaskedLMHead | LinearHead:
    """The head of this name: the one that there is, or its part if it is that of pre-training.

    Args:
        head: of a model, or None.
        name: one of HEADS, but not "pretraining".

    Raises:
        ValueError: if it is another one or there is none, or it is in training mode.
    """
    parts: list[MaskedLMHead | LinearHead]
    if isinstance(head, PretrainingHead):
        parts = [head.masked_lm, head.next_sentence]
    else:
        parts = [] if head is None else [head]
    part = next((one for one in parts if one.config.name == name), None)
    if part is None:
        there = "none" if head is None else f"the head {head.config.name}"
        raise ValueError(f'this takes the head {name}, got {there}; load(..., head="{name}")')
    if part.training:
        raise ValueError("the head is in training mode, where dropout is at work: call eval()")
    return part


def logits(
    model: BertModel,
    head: MaskedLMHead | LinearHead,
    encodings: Sequence[Encoding],
    places: Sequence[Sequence[int]] | None = None,
) -> Iterator[Tensor]:
    """What a head gives for each text.

    Edits that stand on the model (`minibert.edit`) take part. Of a text with more tokens than the
    model has positions, each token is read from the window where it has the most context.

    Args:
        model: in eval mode.
        head: of it, in eval mode.
        encodings: of the texts.
        places: which tokens to read, a list of numbers for each text; None for all. A head that
            reads the pooler's vector has no choice.

    Yields:
        Text after text, on the CPU, in float32 or wider: (places, labels), or (1, labels) for a
        head that reads the pooler's vector.

    Raises:
        ValueError: if the model is in training mode, or a text is too long for a head that reads
            the pooler's vector.
    """
    reading = Reading()
    if head.config.reads_pooler:
        _check_lengths(encodings, model.config.max_position_embeddings)
        reading, places = Reading(unit="sentence", pooling="pooler"), None
    chosen = [torch.empty(0)] * len(encodings)
    for number, states in mixed_states(model, encodings, reading):
        read = states if places is None else states[list(places[number])]
        chosen[number] = torch.from_numpy(read)
    vectors = torch.cat(chosen) if chosen else torch.empty(0)
    starts = range(0, len(vectors), _ROWS)
    answers = (row for start in starts for row in _read(head, vectors[start : start + _ROWS]))
    for rows in chosen:
        yield torch.stack(list(islice(answers, len(rows))))


def _check_lengths(encodings: Sequence[Encoding], most: int) -> None:
    """The pooler reads one window: what does not fit would be lost."""
    for number, encoding in enumerate(encodings):
        if len(encoding) > most:
            raise ValueError(
                f"text {number + 1} has {len(encoding)} tokens, more than the {most} that this "
                "model reads; cut or split it"
            )


@torch.inference_mode()
def _read(head: MaskedLMHead | LinearHead, vectors: Tensor) -> Tensor:
    """(N, H) -> (N, labels)."""
    weight = next(head.parameters())
    vectors = vectors.to(weight.device, weight.dtype)
    given: Tensor = head(BertOutput(last_hidden_state=vectors, pooler_output=vectors))
    return (given.float() if given.dtype.itemsize < 4 else given).cpu()
