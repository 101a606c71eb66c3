"""Runs what the README shows, and compares what is printed with what the README says is printed."""

import contextlib
import dataclasses
import importlib
import inspect
import io
import math
import re
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from conftest import ODD, PIECES, on_a_terminal, random_bert_with, random_model
from test_answers import CONTEXT, QUESTION
from test_layout import BUDGETS, ROOT
from test_model import MUTATIONS
from torch import Tensor, nn

import minibert
from minibert.answers import _windows
from minibert.config import BertConfig
from minibert.encoder import activation
from minibert.finetuning import Batch, loss_of
from minibert.head_config import HeadConfig
from minibert.heads import BertWithHead, LinearHead, MaskedLMHead
from minibert.instances import Instance, InstanceMaker, Recipe
from minibert.model import BertModel, BertOutput, attention_bias
from minibert.plan import Plan, adamw, rate
from minibert.tokenizer import WordPieceTokenizer
from minibert.vectors import Reading
from minibert.wordpiece import WordPieces

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SESSIONS = [block for language, block in BLOCKS if language == "console"]
COMMANDS = [
    pytest.param(command, "".join(expected), id=command[:40])
    for session in SESSIONS
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
]


def test_every_block_is_run() -> None:
    assert {language for language, _ in BLOCKS} == {"console", "python", "text"}
    assert len(COMMANDS) == README.count("\n$ ")
    assert len(README.splitlines()) < 350


def test_pictures_are_there_and_small() -> None:
    shown = re.findall(r"!\[[^\]]+\]\((scripts/pictures/[^)]+)\)", README)
    assert shown
    made = {str(path.relative_to(ROOT)) for path in (ROOT / "scripts" / "pictures").iterdir()}
    assert set(shown) == made
    assert all((ROOT / picture).stat().st_size < 200_000 for picture in shown)


@pytest.mark.usefixtures("minilm_folder")
@pytest.mark.parametrize(("command", "expected"), COMMANDS)
def test_commands(command: str, expected: str) -> None:
    if command == "scripts/test":
        command = "scripts/test --version"  # all but pytest, which is what runs this
        expected = ""
    printed = on_a_terminal("sh", "-c", command)
    if expected:
        assert printed == expected


@pytest.mark.usefixtures("minilm_folder")
def test_python_blocks() -> None:
    names: dict[str, object] = {}
    runs = 0
    for (language, block), (next_language, expected) in zip(BLOCKS, BLOCKS[1:], strict=False):
        if language == "python":
            assert next_language == "text", "each block of Python is followed by its output"
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block, "README.md", "exec"), names)
            assert printed.getvalue() == expected
            runs += 1
    assert runs == README.count("```python")


def test_names_and_numbers_are_true() -> None:
    rows = re.findall(r"^\| (`\w+\.py`.*?) \|(.*)\|$", README, re.MULTILINE)
    stems = [re.findall(r"`(\w+)\.py`( \*)?", files) for files, _ in rows]
    assert [stem for row in stems for stem, _ in row] == list(BUDGETS)
    starred = [stem for row in stems for stem, star in row if star]
    assert starred == ["config", "embeddings", "encoder", "model"]
    for name in re.findall(r"`(?:minibert\.)?(\w+)`", "".join(text for _, text in rows)):
        assert name == "minibert" or hasattr(minibert, name), name
    assert f"{len(MUTATIONS)} classic" in README


ROWS = re.findall(r"^\| (\[[A-Z]\d\d\].*?) \| (.*?) \| (.*?) \| (.*?) \|$", README, re.MULTILINE)


def docstrings(symbol: str) -> str:
    """Those of a module and of what is named in it, down to the symbol; without line ends."""
    module, *names = symbol.split(".")
    item: object = importlib.import_module(f"minibert.{module}")
    found = [inspect.getdoc(item) or ""]
    for name in names:
        item = getattr(item, name)
        found.append(inspect.getdoc(item) or "")
    return " ".join(" ".join(found).split())


def places(paper: str) -> list[tuple[str, str]]:
    """ "[V17] figure 1, section 3.1; [D18] table 7" to each tag with each of its places."""
    references = [reference.partition(" ") for reference in paper.split("; ")]
    return [(tag, place) for tag, _, some in references for place in some.split(", ")]


def test_the_papers_are_in_the_table() -> None:
    assert len(ROWS) == README.count("\n| [") == 21
    cited = {place for row in ROWS for place in places(row[0])}
    for tag, what in {
        "[V17]": ["equation (1)", "equation (2)", "equation (3)", "figure 1", "figure 2"],
        "[D18]": ["figure 1", "figure 2", "figure 4", "table 7", "section 4.3"]
        + [f"appendix A.{number}" for number in (1, 2, 3)],
    }.items():
        assert {(tag, place) for place in what} <= cited


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_row_of_the_papers_is_in_the_code(row: tuple[str, str, str, str]) -> None:
    paper, says, here, departs = row
    assert says
    assert departs
    symbols = re.findall(r"`([\w.]+)`", here)
    assert here == ", ".join(f"`{symbol}`" for symbol in symbols)
    for symbol in symbols:
        text = docstrings(symbol)
        for tag, place in places(paper):
            cited = rf"{re.escape(tag)}[^\[]*{re.escape(place)}(?!\.?\d)"
            assert re.search(cited, text), f"{symbol} does not say {tag} {place}"


CONFIG = dataclasses.replace(ODD, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
X = torch.randn(2, 7, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def part(name: str, config: BertConfig = CONFIG, **changes: float) -> Any:
    """A part of a random model, in eval mode and float64."""
    return random_model(dataclasses.replace(config, **changes), torch.float64).get_submodule(name)


def seen(module: nn.Module, *names: str) -> dict[str, Tensor]:
    """What submodules give, by name, once the module is called."""
    kept: dict[str, Tensor] = {}
    for name in names:
        keep = partial(lambda name, _module, _inputs, output: kept.update({name: output}), name)
        module.get_submodule(name).register_forward_hook(keep)
    return kept


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-12)


def normal(x: Tensor, eps: float) -> Tensor:
    """[B16] equations (3) and (4), with eps beside the variance."""
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + eps).sqrt()


def begins() -> bool:
    """A normal distribution that is cut off at two deviations has 0.8796 of its deviation."""
    weight = BertModel(BertConfig(num_hidden_layers=1)).encoder.layers[0].feed_forward.output.weight
    deviation = weight.std().item() / 0.02
    return 0.039 < weight.abs().max() <= 0.04 and abs(deviation - 0.8796) < 0.005


def sums(norm: bool) -> bool:
    """State 0 is the sum of three rows, or its LayerNorm."""
    embeddings = part("embeddings")
    parts = ("word", "token_type", "position", "norm")
    if not norm:
        embeddings.norm = nn.Identity()
    kept = seen(embeddings, *parts)
    state = embeddings(torch.arange(7)[None], torch.ones(1, 7, dtype=torch.int64))
    total = kept["word"] + kept["token_type"] + kept["position"]
    return same(state, embeddings.norm(total)) and same(state, total) != norm


def learns_512_positions() -> bool:
    with torch.device("meta"):
        position = BertModel(BertConfig()).embeddings.position.weight
    with pytest.raises(ValueError, match="18 tokens are more than the 17 positions"):
        part("embeddings")(*torch.zeros(2, 1, 18, dtype=torch.int64))
    return isinstance(position, nn.Parameter) and len(position) == 512


def drops_probabilities() -> bool:
    attention = part("encoder.layers.0.attention").train()
    attention.dropout.p = 1.0
    return same(attention(X, None), attention.output.bias.expand_as(X))


def reads_the_future() -> bool:
    """The first token changes with the last, and not with one that is padding."""
    attention, changed = part("encoder.layers.0.attention"), X.clone()
    changed[:, -1] += 1
    bias = attention_bias(torch.arange(7).expand(2, 7) < 6, torch.float64)
    reads = [same(attention(X, b)[:, 0], attention(changed, b)[:, 0]) for b in (None, bias)]
    return reads == [False, True]


def is_half_of_the_minimum() -> bool:
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    mask = torch.tensor([[1, 0]])
    return all(
        attention_bias(mask, dtype).flatten().tolist() == [0, torch.finfo(dtype).min / 2]
        for dtype in types
    )


def is_post_norm() -> bool:
    layer = part("encoder.layers.0")
    x = layer.attention_norm(X + layer.attention(X, None))
    return same(layer(X, None), layer.feed_forward_norm(x + layer.feed_forward(x)))


def has_eps_beside_the_variance() -> bool:
    norm = part("encoder.layers.0.attention_norm", layer_norm_eps=0.5)
    by_hand = normal(X, 0.5) * norm.weight + norm.bias
    return BertConfig().layer_norm_eps == 1e-12 and same(norm(X), by_hand)


def drops_what_is_normal() -> bool:
    embeddings = part("embeddings").train()
    embeddings.dropout.p = 1.0
    return not embeddings(*torch.zeros(2, 1, 7, dtype=torch.int64)).any()


def has_tanh() -> bool:
    pooler = part("pooler")
    pooled = torch.tanh(X[:, 0] @ pooler.dense.weight.T + pooler.dense.bias)
    reads = HeadConfig("sequence-classification", ("a", "b")).reads_pooler
    return same(pooler(X), pooled) and reads


def transforms(bias: float) -> bool:
    """The masked-LM head by hand; its bias counts once."""
    head = random_bert_with("masked-lm", dtype=torch.float64).head
    assert isinstance(head, MaskedLMHead)
    norm, word = head.norm, head.decoder.weight
    inner = nn.functional.gelu(X @ head.dense.weight.T + head.dense.bias)
    expected = (normal(inner, norm.eps) * norm.weight + norm.bias) @ word.T + bias * head.bias
    if not bias:
        nn.init.zeros_(head.bias)
    return same(head(BertOutput(X, None)), expected) and head.bias.shape == (len(word),)


def is_next() -> bool:
    return HeadConfig("next-sentence").labels[0] == "follows"


def answers_anywhere() -> bool:
    """There are logits for every token, and a loss that any of them can lower."""
    head = random_bert_with("question-answering", dtype=torch.float64).head
    assert isinstance(head, LinearHead)
    logits = head(BertOutput(X, None)).detach().requires_grad_()
    head.loss(logits, torch.tensor([[5, 6], [5, 6]])).backward()
    return logits.grad is not None and bool((logits.grad != 0).all())


def made(sentences: int, masked: Recipe) -> list[Instance]:
    tokenizer = WordPieceTokenizer(PIECES, lowercase=True)
    return InstanceMaker(tokenizer, masked).make([[[5, 6, 7]] * sentences] * 40, Random(0))


def counts_added_tokens() -> bool:
    """10 tokens, of which 3 are added: half of 10 are predicted, not half of 7."""
    lone = made(1, Recipe(max_length=10, masked_share=0.5, short_share=0.0, copies=1))
    return {(len(i.input_ids), len(i.positions)) for i in lone} == {(9, 4)}


def masks_at_most_20() -> bool:
    many = made(300, Recipe(max_length=512, short_share=0.0, copies=1))
    return max(len(i.positions) for i in many) == 20


def is_random_after_one() -> bool:
    return all(i.is_random_next for i in made(1, Recipe()))


def goes_down_in_a_line() -> bool:
    rates = [rate(Plan(100, 1.0, 10), step) for step in range(101)]
    return all(math.isclose(rates[n], (100 - n) / 90) for n in range(10, 101))


def decays_matrices_alone() -> bool:
    decayed, others = adamw(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))).param_groups
    shapes = [tuple(p.shape) for p in decayed["params"]], len(others["params"])
    return shapes == ([(3, 2)], 3) and (decayed["weight_decay"], others["weight_decay"]) == (
        0.01,
        0,
    )


def corrects_the_bias() -> bool:
    """With the correction Adam's first step is the rate, whatever the gradient: not 0.3 of it."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    layer.weight.grad = torch.full((1, 1), 7.0)
    optimizer = adamw(layer)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    return math.isclose(layer.weight.item(), -0.1, rel_tol=1e-5)


def warms_up() -> bool:
    return '"--warmup", type=float, default=0.1' in (ROOT / "scripts" / "finetune.py").read_text()


def has_no_answer_in_padding() -> bool:
    """The loss of an answer is the same in a longer batch, which pads it."""
    bert = random_bert_with("question-answering", dtype=torch.float64)
    assert bert.head is not None
    model = BertWithHead(bert.model, bert.head)
    ids, label = torch.arange(5, 10)[None], torch.tensor([[2, 3]])
    alone = Batch(ids, ids * 0, None, label)
    longer = torch.cat([ids, ids * 0], dim=1)
    padded = Batch(longer, longer * 0, (torch.arange(10) < 5).long()[None], label)
    return same(loss_of(model, alone)[0], loss_of(model, padded)[0])


def best_score(threshold: float) -> tuple[str, float, float]:
    """The best of all answers; the score of none, and the best that is another."""
    bert = random_bert_with("question-answering", dtype=torch.float64)
    found = bert.answer(QUESTION, CONTEXT, top_k=99, threshold=threshold)
    scores = {bool(one.text): one.score for one in reversed(found)}
    return found[0].text, scores[False], scores[True]


def turns_the_sign() -> bool:
    """Just below what none is better by, none wins; and just above it, the answer."""
    _, none, best = best_score(0.0)
    return [best_score(none - best + gap)[0] == "" for gap in (-0.01, 0.01)] == [True, False]


def takes_the_lowest() -> bool:
    """Of the windows of a long context, in which [CLS] has other scores."""
    bert = random_bert_with("question-answering", dtype=torch.float64)
    assert bert.head is not None
    model, none = BertWithHead(bert.model, bert.head), best_score(0.0)[1]
    scores = []
    for window in _windows(bert.tokenizer.encode(QUESTION, CONTEXT), bert.model, None):
        encoding = window.encoding
        ids, segments = torch.tensor([[encoding.input_ids], [encoding.token_type_ids]])
        scores.append(model(ids, segments)[0, 0].sum().item())
    return math.isclose(none, min(scores)) and not math.isclose(none, max(scores))


# Each departure in the table, and whether it is so.
DEPARTURES: dict[str, Callable[[], bool]] = {
    "the longest match first, on which the paper is silent": lambda: (
        WordPieces({"[UNK]": 0, "a": 1, "ab": 2, "##b": 3})["ab"] == (2,)
    ),
    "`##` marks what goes on with a word, not `_` what begins one": lambda: (
        WordPieces({"[UNK]": 0, "a": 1, "_a": 2, "##b": 3, "b": 4})["ab"] == (1, 3)
    ),
    "30,522 pieces, not 30,000": lambda: BertConfig().vocab_size == 30522,
    "weights begin as a normal distribution of 0.02, cut off at 0.04, in no paper": begins,
    "a LayerNorm on the sum": partial(sums, norm=True),
    "no factor": partial(sums, norm=False),
    "learned positions, so 512 at most": learns_512_positions,
    "dropout on the probabilities, which section 5.4 has not": drops_probabilities,
    "a bias on all four maps": lambda: all(
        part(f"encoder.layers.0.attention.{name}").bias is not None
        for name in ("query", "key", "value", "output")
    ),
    "the future is read, padding is not": reads_the_future,
    "-10000 in Google's code, half the dtype's minimum here": is_half_of_the_minimum,
    "GELU, as [D18] says, for ReLU": lambda: isinstance(
        activation(BertConfig().hidden_act), nn.GELU
    ),
    "exact, by erf": lambda: same(
        activation(BertConfig().hidden_act)(X), X * (1 + torch.erf(X / math.sqrt(2))) / 2
    ),
    "not at all": is_post_norm,
    "eps 1e-12 beside the variance": has_eps_beside_the_variance,
    "on the embeddings after their LayerNorm": drops_what_is_normal,
    "tanh(W C + b), in no paper, is what classifiers read": has_tanh,
    "a layer, GELU and LayerNorm before it": partial(transforms, bias=0.0),
    "a bias for each piece": partial(transforms, bias=1.0),
    "a bias": lambda: LinearHead(ODD, HeadConfig("next-sentence")).linear.bias is not None,
    "the pooler for C": lambda: HeadConfig("next-sentence").reads_pooler,
    'class 0 is "is next"': is_next,
    "an answer may be anywhere": answers_anywhere,
    "[CLS] and [SEP] count among the tokens": counts_added_tokens,
    "20 at most": masks_at_most_20,
    "after a lone sentence B is random, so more than half are": is_random_after_one,
    'the paper takes a word\'s first piece: here that is `pooling="first"`, '
    "and the mean without it": lambda: Reading(unit="word").pooling == "mean",
    "a line": goes_down_in_a_line,
    "no decay of biases and LayerNorms": decays_matrices_alone,
    "epsilon 1e-6, not 1e-9": lambda: adamw(nn.Linear(2, 2)).defaults["eps"] == 1e-6,
    "the gradient clipped to norm 1": lambda: Plan(1).clip == 1,
    "Adam's bias corrected here, not in Google's code": corrects_the_bias,
    "warm-up in a tenth of the steps": warms_up,
    "no answer in the padding, where Google's code lets it be": has_no_answer_in_padding,
    "the threshold is minus tau": turns_the_sign,
    "of several windows the lowest S C + E C counts": takes_the_lowest,
}

# Of other code, which is not here to be run.
ELSEWHERE = {
    "Google's code has the one by tanh today",
    "most later models are pre-LN",
    "Google's code divides by the number of masked pieces plus 1e-5",
}


def test_the_departures_are_those_that_are_tried() -> None:
    claims = [claim for *_, departs in ROWS for claim in departs.split("; ")]
    assert sorted(claims) == sorted([*DEPARTURES, *ELSEWHERE])


@pytest.mark.parametrize("claim", DEPARTURES)
def test_a_departure_is_true(claim: str) -> None:
    assert DEPARTURES[claim]()
