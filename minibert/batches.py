"""Many texts through the model at full speed: equal lengths together, so that nothing is padded.

A batch of sequences of one length has neither padding nor mask, and every number that is computed
is used. A text that is longer than the model's positions goes through as windows that overlap.
Read next: senses.py.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from minibert.config import BertConfig
from minibert.encoding import Encoding
from minibert.hooks import capture
from minibert.model import BertModel
from minibert.packing import pack_model, refusal
from minibert.vectors import Reading
from minibert.workers import count_workers, run_batches

BATCH_TOKENS = 1024  # on two cores, minilm takes 4% more time with 512 and 15% more with 2048
WIDTH = 384  # a wider model has fewer at once, for the memory: bert-base 512, which is as fast
WORKER_TOKENS = 512  # less work than this for each is done before a worker has begun
PACK_TOKENS = 4096  # from here on packing (1 ms for 3 MB of weights) saves more than it takes


class _Window(NamedTuple):
    """A stretch of a text that fits the model, and what stands before it in every window."""

    text: int  # number of the text
    start: int  # tokens from start up to end of its encoding; the last [SEP] is not counted
    end: int
    input_ids: list[int]
    token_type_ids: list[int]


def mixed_states(
    model: BertModel,
    encodings: Sequence[Encoding],
    reading: Reading,
    stride: int | None = None,
    batch_tokens: int | None = None,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Run texts through the model and mix their layers, longest first.

    Args:
        model: in eval mode.
        encodings: of texts of any length.
        reading: which layers, and how they are combined.
        stride: how many tokens the windows of a long text share; None means half of what fits.
        batch_tokens: how many are in a batch, but at least a window; None means `fitting_tokens`.

    Yields:
        (number of the text, its states): what Reading.mix gives, (T, ...), for all of its tokens;
        for the pooler (1, H), of the first window. A token that stands in several windows has its
        vector from the one where it has the most context on its poorer side.

    Raises:
        ValueError: if the model is in training mode, or windows would not move on.
    """
    if model.training:
        raise ValueError("the model is in training mode, where dropout is at work: call eval()")
    most = model.config.max_position_embeddings
    by_text = [_windows(n, encoding, most, stride) for n, encoding in enumerate(encodings)]
    done: dict[int, dict[int, NDArray[np.float32]]] = {}
    batches = list(_batches([*chain(*by_text)], batch_tokens or fitting_tokens(model.config)))
    tokens = sum(len(window.input_ids) for batch in batches for window in batch)
    model = _packed(model, tokens)
    workers = count_workers(model, min(len(batches), tokens // WORKER_TOKENS))
    for batch, results in run_batches(model, batches, partial(_run, reading=reading), workers):
        for window, states in zip(batch, results, strict=True):
            parts = done.setdefault(window.text, {})
            parts[window.start] = states
            if len(parts) == len(by_text[window.text]):
                yield window.text, _join(by_text[window.text], done.pop(window.text), reading)
        del results, states, parts  # or this batch would stay while the next is computed


def fitting_tokens(config: BertConfig) -> int:
    """How many tokens a model of this width has at once, if nobody says.

    >>> fitting_tokens(BertConfig())
    512
    """
    return max(1, min(BATCH_TOKENS, BATCH_TOKENS * WIDTH // config.hidden_size))


def _packed(model: BertModel, tokens: int) -> BertModel:
    """For so many tokens: packed if that pays and can be."""
    is_much = tokens >= PACK_TOKENS and not torch.is_autocast_enabled("cpu")
    return pack_model(model) if is_much and refusal(model) is None else model


def _batches(windows: list[_Window], batch_tokens: int) -> Iterator[list[_Window]]:
    """Windows of one length together, the longest first."""
    windows.sort(key=lambda window: len(window.input_ids), reverse=True)
    for length, group in groupby(windows, key=lambda window: len(window.input_ids)):
        same, size = list(group), max(1, batch_tokens // length)
        while same:
            # The last two are of one size: in a small one, a token takes more time.
            count = (len(same) + 1) // 2 if size < len(same) < 2 * size else size
            yield same[:count]
            same = same[count:]


def _run(model: BertModel, batch: list[_Window], reading: Reading) -> NDArray[np.float32]:
    """Windows of one length: (B, T, ...), or (B, 1, H) for the pooler."""
    device = model.embeddings.word.weight.device
    ids = torch.tensor([window.input_ids for window in batch], device=device)
    segments = torch.tensor([window.token_type_ids for window in batch], device=device)
    layers = model.config.num_hidden_layers
    numbers = reading.states(layers)
    with torch.inference_mode():
        if reading.pooling == "pooler":
            pooled = model(ids, segments).pooler_output
            if pooled is None:
                raise ValueError("this model has no pooler")
            return reading.mix([pooled[:, None]])
        if numbers == [layers]:
            return reading.mix([model(ids, segments).last_hidden_state])
        names = [f"encoder.layers.{n - 1}" if n else "embeddings" for n in numbers]
        with capture(model, names) as seen:
            model(ids, segments)
        return reading.mix([seen[name] for name in names])


def _windows(text: int, encoding: Encoding, most: int, stride: int | None) -> list[_Window]:
    """One window if all fits, else as many as it takes; a first text of a pair is in all."""
    if stride is not None and not (isinstance(stride, int) and stride >= 0):
        raise ValueError(f"stride must be a number of tokens, got {stride!r}")
    ids, types = encoding.input_ids, encoding.token_type_ids
    if len(ids) <= most:
        return [_Window(text, 0, len(ids), ids, types)]
    first, room, stride = room_in_windows(f"text {text}", encoding, most, stride)
    last = len(ids) - 1
    starts = [*range(first, last - room, room - stride), last - room]
    return [
        _Window(
            text,
            start,
            start + room,
            [*ids[:first], *ids[start : start + room], ids[-1]],
            [*types[:first], *types[start : start + room], types[-1]],
        )
        for start in starts
    ]


def room_in_windows(
    name: str, encoding: Encoding, most: int, stride: int | None
) -> tuple[int, int, int]:
    """Where the part begins that windows cut, how much each has of it, and how much two share.

    A ValueError, with the name of the text, if they would not move on.
    """
    types = encoding.token_type_ids
    first = types.index(1) if 1 in types else 1
    room = most - first - 1
    stride = max(room // 2, 0) if stride is None else stride
    if not 0 <= stride < room:
        raise ValueError(
            f"{name} has {len(types)} tokens, more than the {most} positions of this model, and "
            f"windows that share {stride} tokens have room for {max(room, 0)}; cut or split it"
        )
    return first, room, stride


def _join(
    windows: Sequence[_Window], parts: dict[int, NDArray[np.float32]], reading: Reading
) -> NDArray[np.float32]:
    """The states of a whole text, each token from its best window."""
    states = parts[windows[0].start]
    if len(windows) == 1 or reading.pooling == "pooler":
        return states
    first, last = windows[0].start, windows[-1].end
    joined = np.empty((last + 1, *states.shape[1:]), states.dtype)
    joined[:first] = states[:first]
    begin = first
    for window, following in zip(windows, [*windows[1:], None], strict=True):
        # In the middle of what two windows share, both have as much context.
        end = window.end if following is None else (window.end + following.start + 1) // 2
        states = parts[window.start]
        joined[begin:end] = states[first + begin - window.start : first + end - window.start]
        begin = end
    joined[last] = states[-1]
    return joined
