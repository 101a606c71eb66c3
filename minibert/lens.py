"""What a model makes of a few texts, as one page of HTML that opens anywhere: `lens_page`.

The page (lens.html, lens.css, lens.js) draws itself from the numbers in it. They are the float32 of
`Bert.states` with attentions, all of them and unrounded, so that what a reader copies is what the
code gives; and nothing is fetched from anywhere, today or in ten years. Read next: plots.py.
"""

import base64
import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Sequence
from importlib import resources
from itertools import groupby
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from minibert.bert import Bert, States
from minibert.blocks import read_pair
from minibert.heads import MaskedLMHead, PretrainingHead
from minibert.manifest import fingerprint
from minibert.model import BertOutput
from minibert.vectors import Text

TOP = 5  # guesses of the masked-LM head for each token and state
LARGEST = 300 << 20  # bytes of a page: browsers hold no string of 512 MiB, and are slow before


def lens_page(bert: Bert, texts: Sequence[str], max_length: int | None = None) -> str:
    """Look into a model, on a page: tokens, attention, hidden states, senses, and [MASK].

    Edits that stand on the model (`minibert.edit`) take part.

    Args:
        bert: a model in eval mode; with a masked-LM head, the page has what the head says.
        texts: one text or more; "A ||| B" is a pair, which the model reads together.
        max_length: cut texts to so many tokens; None makes a text that is too long an error.

    Returns:
        HTML, with nothing outside it. The same model and texts give the same page.

    Raises:
        ValueError: if there is no text, one is too long, the model is in float64, whose numbers
            the page could not hold exactly, or it overflows.
    """
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts must be a list of str, and not empty, got {texts!r:.60}")
    if bert.model.embeddings.word.weight.dtype == torch.float64:
        raise ValueError("a page has float32 numbers, the model float64: load it as float32")
    pairs = [read_pair(text) for text in texts]
    many = bert.states([text.given for text in pairs], attentions=True, max_length=max_length)
    for number, one in enumerate(many, start=1):
        for state, vectors in enumerate(one.hidden_states):
            if not vectors.isfinite().all():
                told = f"state {state} of text {number} is not finite: {texts[number - 1]!r:.60}"
                raise ValueError(f"{told}; the model overflows, and a page has finite numbers")
    size = sum(part.nbytes for one in many for part in _arrays(one)) * 4 // 3
    if size > LARGEST:
        told = f"the page would have {size >> 20} MB, more than browsers open"
        raise ValueError(f"{told}; give fewer texts, or cut them with max_length")
    points, shares = _project(many)
    shown = [_text(bert, *each) for each in zip(pairs, many, points, strict=True)]
    used = {i for text in shown if text["guesses"] for i in text["guesses"]["ids"]}
    known = bert.tokenizer.vocabulary
    # The embedding may have rows to spare, of which no piece is known.
    pieces = {n: known[n] if n < len(known) else f"(row {n})" for n in sorted(used)}
    return _assemble({**_describe(bert), "projection": shares, "pieces": pieces, "texts": shown})


def _assemble(data: dict[str, Any]) -> str:
    r"""Put style, script and data into the page, in one pass, so that no text is taken for a place.

    JSON in ASCII has no U+2028, and with "<" written as \u003c nothing in it can end its element.
    Were there a hole all the same, the browser would run no script but the one with this hash.
    """
    parts = {name: _file(f"lens.{kind}") for name, kind in (("style", "css"), ("script", "js"))}
    for name in list(parts):
        digest = base64.b64encode(hashlib.sha256(parts[name].encode()).digest()).decode()
        parts[f"{name}_hash"] = f"sha256-{digest}"
    parts["data"] = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("lens.html"))


def _file(name: str) -> str:
    return resources.files("minibert").joinpath(name).read_text("utf-8")


def _describe(bert: Bert) -> dict[str, Any]:
    """What made the page."""
    source, config = bert.source, bert.config
    model = {
        "name": source.name if source else None,
        "commit": source.commit if source else None,
        "sha256": fingerprint(bert),
        "head": bert.head.config.name if bert.head else None,
        "head_sha256": hashlib.sha256(save(bert.head.state_dict())).hexdigest()
        if bert.head
        else None,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "width": config.hidden_size,
    }
    version = importlib.metadata.version("minibert-pytorch")
    python = platform.python_version()
    versions = {"minibert": version, "torch": torch.__version__, "python": python}
    return {"model": model, "versions": versions}


def _text(bert: Bert, text: Text, states: States, points: Tensor) -> dict[str, Any]:
    """All that the page knows of one text or pair."""
    encoding = states.encoding
    hidden_states, attentions = _arrays(states)
    return {
        "parts": [part for part in (text.first, text.second) if part is not None],
        "tokens": encoding.tokens,
        "whole": len(bert.tokenizer.encode(text.first, text.second)),  # tokens, before it was cut
        "ids": encoding.input_ids,
        "segments": encoding.token_type_ids,
        "offsets": encoding.offsets,
        "word_ids": encoding.word_ids,
        "added": encoding.special_tokens_mask,
        "words": _words(text, states),
        "states": _base64(hidden_states),  # (L + 1, T, H)
        "attentions": [_base64(layer) for layer in attentions],  # L times (A, T, T)
        "points": _base64(points),  # (L + 1, T, 2)
        "guesses": _guess(bert, hidden_states),
    }


def _arrays(states: States) -> tuple[Tensor, Tensor]:
    """As float32, which holds what half precision gives."""
    if states.attentions is None:
        raise ValueError("these states were read without attentions")
    return states.hidden_states.float(), states.attentions.float()


def _words(text: Text, states: States) -> list[dict[str, Any]]:
    """The groups that word_attention makes: a word's tokens, or one added token."""
    encoding, words = states.encoding, []
    keys = [n if word is None else (word,) for n, word in enumerate(encoding.word_ids)]
    for _, run in groupby(range(len(keys)), key=keys.__getitem__):
        tokens = list(run)
        first, last = tokens[0], tokens[-1]
        added, segment = encoding.special_tokens_mask[first], encoding.token_type_ids[first]
        start, end = encoding.offsets[first][0], encoding.offsets[last][1]
        label = encoding.tokens[first] if added else text.between(segment, start, end)
        place = {"start": start, "end": end, "segment": segment}
        words.append({"label": label, "first": first, "last": last, "added": added, **place})
    return words


def _guess(bert: Bert, hidden_states: Tensor) -> dict[str, Any] | None:
    """What the masked-LM head makes of every token in every state; None without such a head."""
    head = bert.head.masked_lm if isinstance(bert.head, PretrainingHead) else bert.head
    if not isinstance(head, MaskedLMHead):
        return None
    count = min(TOP, bert.config.vocab_size)
    weight = bert.model.embeddings.word.weight
    ids, probabilities = [], []
    with torch.inference_mode():
        for state in hidden_states:  # one by one: the logits of all would be V / H times as much
            logits = head(BertOutput(state.to(weight.device, weight.dtype), None))
            top = logits.float().softmax(dim=-1).topk(count)
            ids += top.indices.flatten().tolist()
            probabilities.append(top.values.cpu())
    return {"count": count, "ids": ids, "probabilities": _base64(torch.stack(probabilities))}


def _project(many: Sequence[States]) -> tuple[list[Tensor], list[float]]:
    """The first two principal components of all states of all tokens.

    Returns:
        For each text (L + 1, T, 2), float32; and the share of the variance that each explains. The
        sign of a component is such that the largest of its H weights is positive.
    """
    every = torch.cat([states.hidden_states.flatten(0, 1) for states in many]).double()  # (N, H)
    centred = every - every.mean(dim=0)
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
    axes = directions[:2]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    points = (centred @ (axes * largest.sign()).T).float()
    shares = (lengths[:2].square() / lengths.square().sum()).tolist()
    sizes = [states.hidden_states.shape[:2] for states in many]
    split = points.split([layers * tokens for layers, tokens in sizes])
    return [part.view(*size, 2) for part, size in zip(split, sizes, strict=True)], shares


def _base64(array: Tensor) -> str:
    return base64.b64encode(array.contiguous().numpy().astype("<f4").tobytes()).decode()
