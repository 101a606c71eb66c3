"""Where in a text is the answer to a question?

[D18] section 4.2 and section 4.3, by the rules of write_predictions in
google-research/bert@1cd50d7 run_squad.py. But that looks at the best 20 starts and ends of a
window, and this at all of them; and the answer is the very characters of the context. A long
context goes through as windows of 384 tokens, or what the model reads if that is less; the question
stands whole in each.

Read next: bert.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minibert.encoding import Encoding
from minibert.heads import Head
from minibert.logits import find_part, logits
from minibert.model import BertModel
from minibert.tokenizer import WordPieceTokenizer

# Tokens of a window, and how far windows move: as models were trained on SQuAD, by max_seq_length
# and doc_stride of run_squad.py.
_WINDOW = 384
_STEP = 128


class Answer(NamedTuple):
    """A stretch of a context, context[start:end], that may answer a question; or "" for none."""

    text: str
    start: int
    end: int
    score: float  # logit of its first token as a start, plus logit of its last as an end
    probability: float  # its share of all that could be the answer: softmax of the scores


class Search(NamedTuple):
    """How an answer is looked for.

    top_k: how many answers to give.
    max_answer_length: the most tokens of one.
    threshold: "" is an answer, too. Its score is that of [CLS], in the window where it is lowest,
        and it is the best answer if that is more than the threshold above every other. With None,
        "" is none. The paper has no windows, and turns the sign: an answer is better than none if
        its score is more than tau above that of none.
    stride: how many tokens two windows share; None for as many as make them move on by 128.
    """

    top_k: int = 1
    max_answer_length: int = 30
    threshold: float | None = None
    stride: int | None = None


class _Window(NamedTuple):
    """A question with a part of its context, from piece `start` of it up to `end`."""

    encoding: Encoding
    start: int
    end: int


def answer(
    model: BertModel,
    head: Head | None,
    tokenizer: WordPieceTokenizer,
    question: str,
    context: str,
    search: Search,
) -> list[Answer]:
    """Find the answer to a question in a context.

    Returns:
        The best stretches of the context, the best first.

    Raises:
        ValueError: if a text has no token, the question leaves no room, an option is wrong, or the
            model has no such head.
    """
    part = find_part(head, "question-answering")
    if search.top_k < 1 or search.max_answer_length < 1:
        raise ValueError(f"top_k and max_answer_length must be at least 1, got {search}")
    windows = _windows(tokenizer.encode(question, context), model, search.stride)
    rows = list(logits(model, part, [window.encoding for window in windows]))
    null = torch.stack([row[0].sum() for row in rows]).min()  # both logits of [CLS]
    scores, spans = _spans_of_windows(windows, rows, search.max_answer_length)
    has_null = search.threshold is not None
    total = torch.cat([scores, null[None]] if has_null else [scores]).logsumexp(dim=0)
    best = scores.topk(min(search.top_k, len(scores)))
    answers = []
    for score, place in zip(best.values, best.indices.tolist(), strict=True):
        start, end = spans[place]
        probability = (score - total).exp().item()
        answers.append(Answer(context[start:end], start, end, score.item(), probability))
    if search.threshold is not None:
        none = Answer("", 0, 0, null.item(), (null - total).exp().item())
        better = [one for one in answers if none.score - one.score <= search.threshold]
        answers = [*better, none, *answers[len(better) :]][: search.top_k]
    return answers


def _windows(whole: Encoding, model: BertModel, stride: int | None) -> list[_Window]:
    """Cut the context into windows, each with the question before it."""
    segments = whole.token_type_ids
    if 1 not in segments or segments.index(1) == 2 or segments[-2] == 0:
        raise ValueError("the question or the context has no token")
    first, last = segments.index(1), len(whole) - 1  # the context, and the [SEP] after it
    room = min(_WINDOW, model.config.max_position_embeddings) - first - 1
    stride = max(room - _STEP, room // 2) if stride is None else stride
    if not 0 <= stride < room:
        raise ValueError(
            f"with a question of {first - 2} tokens a window has room for {max(room, 0)} of the "
            f"context, and windows cannot share {stride}"
        )
    windows = []
    step, total = room - stride, last - first
    for start in range(0, max(total - room, 0) + step, step):
        end = min(start + room, total)
        columns = {
            name: [*column[:first], *column[first + start : first + end], column[last]]
            for name, column in vars(whole).items()
        }
        windows.append(_Window(Encoding(**columns), start, end))
    return windows


def _spans_of_windows(
    windows: Sequence[_Window], rows: Sequence[Tensor], longest: int
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Every stretch that may be the answer: its score (N,), and its place in the context.

    A stretch counts in the window in which its first token has the most context.
    """
    scores, spans = [], []
    for number, ((encoding, first, end), row) in enumerate(zip(windows, rows, strict=True)):
        offset = len(encoding) - 1 - (end - first)  # where the context begins
        starts, ends = row[offset:-1].unbind(dim=-1)
        table = starts[:, None] + ends  # [s, e] for the stretch from token s to token e
        allowed = torch.ones_like(table).triu().tril(longest - 1).bool()
        own = [_best_window(windows, token) == number for token in range(first, end)]
        allowed &= torch.tensor(own)[:, None]
        scores.append(table[allowed])
        places = encoding.offsets[offset:-1]
        spans += [(places[s][0], places[e][1]) for s, e in allowed.nonzero().tolist()]
    return torch.cat(scores), spans


def _best_window(windows: Sequence[_Window], token: int) -> int:
    """The number of the window in which a token of the context has the most on its poorer side.

    Source: _check_is_max_context of run_squad.py.
    """
    # That adds 0.01 of a window's length; but only the last may be shorter, and of equals the first
    # is taken anyway.
    context = [
        min(token - start, end - 1 - token) if start <= token < end else -1
        for _, start, end in windows
    ]
    return context.index(max(context))
