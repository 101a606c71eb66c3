"""The published numbers: does a model give what others have printed for its weights?

`published_numbers.json` has the numbers, each with its source. What the weights at hand allow is
run; a number that needs a head which the file lacks is listed as not run, and never as passed. Read
next: lens.py.
"""

import json
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minibert.bert import Bert
from minibert.cache import sha256
from minibert.config import CheckpointError
from minibert.glossary import HEAD_NAMES, modern_name
from minibert.hooks import capture
from minibert.hub import find_files
from minibert.loading import load
from minibert.logits import find_part
from minibert.model import BertOutput
from minibert.weights import Stored, find_weights

_MINILM = "sentence-transformers/all-MiniLM-L6-v2"

# Readings that need a head.
_NEEDS = {
    "masked_lm_logits": "masked-lm",
    "fill_mask": "masked-lm",
    "pseudo_log_likelihood": "masked-lm",
    "pseudo_log_likelihood_sum": "masked-lm",
    "next_sentence_logits": "next-sentence",
}


class Number(NamedTuple):
    """One published number, and what the model gives for it."""

    name: str  # what is read, and at which place, such as "cosine[0, 1]"
    source: str  # where it was published
    expected: float
    got: float | None  # None: not run
    tolerance: float  # absolute, in the number's own unit
    needs: str = ""  # why it was not run

    @property
    def difference(self) -> float | None:
        """How far off, without sign; None if it was not run."""
        return None if self.got is None else abs(self.got - self.expected)

    @property
    def verdict(self) -> str:
        """One of "pass", "FAIL" (also for NaN) and "not run"."""
        if self.difference is None:
            return "not run"
        return "pass" if self.difference <= self.tolerance else "FAIL"


def verify(
    source: str | os.PathLike[str],
    revision: str | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
) -> list[Number]:
    """Run every number that is published for a model, in float32 on the CPU.

    Args:
        source: a name on the Hub, a folder, or "minilm", as for load. Numbers are looked up by the
            name, or by the hash of the weights.
        revision: branch, tag or commit of a Hub model.
        local_files_only: ask the Hub nothing; take its cache as it is.
        allow_pickle: read pytorch_model.bin where there is no model.safetensors.

    Returns:
        The numbers, in the order of the file; those that need a head which is not there were not
        run.

    Raises:
        ValueError: if no number is published for this model; names the models that have some.
        CheckpointError: if the model cannot be loaded.
    """
    files = find_files(source, revision, local_files_only)
    path, tensors = find_weights(files, allow_pickle)
    sets = _find_sets(files.source, path)
    heads = _find_heads(tensors, sets)
    head = "pretraining" if len(heads) == 2 else next(iter(heads), None)
    bert = load(
        source,
        head=head,
        revision=revision,
        allow_pickle=allow_pickle,
        local_files_only=local_files_only,
    )
    return [number for entry in sets for number in _compare(bert, entry, heads)]


def _compare(bert: Bert, entry: dict[str, Any], heads: list[str]) -> list[Number]:
    """The numbers of one reading, run if its head is there."""
    reading = entry["reading"]
    is_run = _NEEDS.get(reading) in (None, *heads)
    needs = "" if is_run else f"the head {_NEEDS[reading]}"
    with torch.inference_mode():
        values = _READINGS[reading](bert, entry) if is_run else None
    numbers = []
    for place, expected in entry["numbers"]:
        got = None if values is None else values[tuple(place)].item()
        tolerance = entry["atol"] + entry["rtol"] * abs(expected)
        name = f"{reading}{place}"
        numbers.append(Number(name, entry["source"], expected, got, tolerance, needs))
    return numbers


def require_pass(numbers: list[Number]) -> None:
    """Say which numbers are wrong.

    Raises:
        CheckpointError: if a number failed, or none could be run.
    """
    ran = [number for number in numbers if number.got is not None]
    failed = [number.name for number in ran if number.verdict == "FAIL"]
    if failed:
        more = f" and {len(failed) - 10} more" if len(failed) > 10 else ""
        names = ", ".join(failed[:10])
        raise CheckpointError(f"{len(failed)} of {len(ran)} numbers failed: {names}{more}")
    if not ran:
        raise CheckpointError(f"none of the {len(numbers)} published numbers could be run")


def to_table(numbers: list[Number]) -> str:
    """A row per number under the source that it is from, and a last line that counts."""
    width = max(len(number.name) for number in numbers)
    heads = ("expected", "got", "difference", "tolerance")
    rows, source = [" ".join([" " * (width + 2), *(f"{head:>11}" for head in heads)])], ""
    for number in numbers:
        if number.source != source:
            source = number.source
            rows.append(source)
        start = f"  {number.name:{width}} {number.expected:11.6f} "
        if number.got is None:
            rows.append(f"{start}not run: needs {number.needs}")
        else:
            end = f"{number.difference:11.1e} {number.tolerance:11.1e}  {number.verdict}"
            rows.append(f"{start}{number.got:11.6f} {end}")
    verdicts = [number.verdict for number in numbers]
    not_run = verdicts.count("not run")
    rest = f"; {not_run} not run" if not_run else ""
    return "\n".join([*rows, f"{verdicts.count('pass')} of {len(verdicts) - not_run} pass{rest}"])


def to_json(numbers: list[Number]) -> str:
    """One JSON object: how many numbers passed, failed and were not run, and all of them."""
    verdicts = [number.verdict for number in numbers]
    count = {name: verdicts.count(name) for name in ("pass", "FAIL", "not run")}
    records = [
        {**number._asdict(), "difference": number.difference, "verdict": number.verdict}
        for number in numbers
    ]
    summary = {"passed": count["pass"], "failed": count["FAIL"], "not_run": count["not run"]}
    return json.dumps({**summary, "numbers": records}, indent=1, ensure_ascii=False)


def _find_sets(source: str, weights: Path) -> list[dict[str, Any]]:
    """The sets of numbers that are published for a model of this name, or for these weights."""
    text = resources.files("minibert").joinpath("published_numbers.json").read_text("utf-8")
    published = json.loads(text)
    hashes = {digest: model for model, digest in published["weights_sha256"].items()}
    name = _MINILM if source == "minilm" else source
    models = sorted({entry["model"] for entry in published["sets"]})
    if name not in models:
        name = hashes.get(sha256(weights), name)
    sets = [entry for entry in published["sets"] if entry["model"] == name]
    if not sets:
        raise ValueError(
            f"no numbers are published for {source}, there are some for {', '.join(models)}"
        )
    return sets


def _find_heads(tensors: list[Stored], sets: list[dict[str, Any]]) -> list[str]:
    """The heads that numbers need and of which the file has anything; loading then asks for all."""
    needed = {_NEEDS[entry["reading"]] for entry in sets if entry["reading"] in _NEEDS}
    names = {modern_name(stored.name) for stored in tensors}
    return [head for head in sorted(needed) if names & set(HEAD_NAMES[head].values())]


def _run(bert: Bert, entry: dict[str, Any]) -> BertOutput:
    names = ("input_ids", "token_type_ids", "attention_mask")
    output: BertOutput = bert.model(
        *(torch.tensor(entry[name]) if name in entry else None for name in names)
    )
    return output


def _sentences(bert: Bert, entry: dict[str, Any]) -> Tensor:
    """Each text alone -> (N, H): the mean of its last vectors, [CLS] and [SEP] too; length 1."""
    encodings = bert.tokenizer.encode_batch(entry["texts"])
    outputs = [bert.model(torch.tensor([encoding.input_ids])) for encoding in encodings]
    means = torch.stack([output.last_hidden_state[0].mean(dim=0) for output in outputs])
    return torch.nn.functional.normalize(means)


def _cosine(bert: Bert, entry: dict[str, Any]) -> Tensor:
    sentences = _sentences(bert, entry)
    return sentences @ sentences.T  # (N, N)


def _negative_manhattan(bert: Bert, entry: dict[str, Any]) -> Tensor:
    sentences = _sentences(bert, entry)
    return -(sentences[:, None] - sentences).abs().sum(dim=-1)  # (N, N)


def _last_hidden_state(bert: Bert, entry: dict[str, Any]) -> Tensor:
    return _run(bert, entry).last_hidden_state  # (B, T, H)


def _pooler_output(bert: Bert, entry: dict[str, Any]) -> Tensor:
    pooled = _run(bert, entry).pooler_output  # (B, H)
    if pooled is None:
        raise CheckpointError("the checkpoint has no pooler, its published output cannot be run")
    return pooled


def _last_four_states(bert: Bert, entry: dict[str, Any]) -> Tensor:
    with capture(bert.model, "hidden_states") as seen:
        _run(bert, entry)
    return torch.stack(seen.hidden_states[-4:]).sum(dim=0)  # (B, T, H)


def _last_four_states_cosine(bert: Bert, entry: dict[str, Any]) -> Tensor:
    tokens = torch.nn.functional.normalize(_last_four_states(bert, entry)[0])
    return tokens @ tokens.T  # (T, T)


def _masked_lm_logits(bert: Bert, entry: dict[str, Any]) -> Tensor:
    logits: Tensor = find_part(bert.head, "masked-lm")(_run(bert, entry))
    return logits  # (B, T, V)


def _next_sentence_logits(bert: Bert, entry: dict[str, Any]) -> Tensor:
    logits: Tensor = find_part(bert.head, "next-sentence")(_run(bert, entry))
    return logits  # (B, 2)


def _fill_mask(bert: Bert, entry: dict[str, Any]) -> Tensor:
    probabilities = torch.full((len(entry["texts"]), len(bert.tokenizer)), torch.nan)
    for blank in bert.fill(entry["texts"], top_k=len(bert.tokenizer)):
        for candidate in blank.candidates:
            probabilities[blank.text, candidate.ids[0]] = candidate.probability
    return probabilities  # (N, V)


def _pseudo_log_likelihood(bert: Bert, entry: dict[str, Any]) -> Tensor:
    """(N, T), with nothing for [CLS] and [SEP]."""
    rows = bert.pseudo_log_likelihood(entry["texts"])
    of_texts = [torch.tensor([torch.nan, *row.log_probabilities]) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(of_texts, True, torch.nan)


def _pseudo_log_likelihood_sum(bert: Bert, entry: dict[str, Any]) -> Tensor:
    return torch.tensor([row.total for row in bert.pseudo_log_likelihood(entry["texts"])])  # (N,)


# What can be read off a model: the file's word for it -> how.
_READINGS: dict[str, Callable[[Bert, dict[str, Any]], Tensor]] = {
    "cosine": _cosine,
    "negative_manhattan": _negative_manhattan,
    "last_hidden_state": _last_hidden_state,
    "pooler_output": _pooler_output,
    "last_four_states": _last_four_states,
    "last_four_states_cosine": _last_four_states_cosine,
    "masked_lm_logits": _masked_lm_logits,
    "next_sentence_logits": _next_sentence_logits,
    "fill_mask": _fill_mask,
    "pseudo_log_likelihood": _pseudo_log_likelihood,
    "pseudo_log_likelihood_sum": _pseudo_log_likelihood_sum,
}
