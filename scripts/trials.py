"""The ten exercises: what is taken out of the package, what is asked, and how an answer is tried.

A trial computes something with whatever `minibert` is on the path. scripts/exercises.py runs it on
the library, whose results are the right ones, and then

    PYTHONPATH=exercises/1 python scripts/trials.py 1 FILE

runs it on the learner's copy. Everything is in float64, where rounding shows at 1e-14, so that no
mistake can pass for it. Where the subject of a trial is a module, the library's classic mistakes
and some slips are made in it, one after the other, and an answer that is wrong in one of these ways
is told so.
"""

import copy
import dataclasses
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import minibert
from minibert.bundle import fixed_inputs
from minibert.config import BertConfig
from minibert.embeddings import Embeddings
from minibert.encoder import FeedForward, SelfAttention
from minibert.encoding import Encoding
from minibert.head_config import HeadConfig
from minibert.heads import MaskedLMHead
from minibert.hooks import Captured
from minibert.mistakes import MISTAKES, make, what_if
from minibert.model import BertModel, BertOutput, attention_bias
from minibert.vectors import Reading, Text, read
from minibert.wordpiece import WordPieces

TOLERANCE = 1e-9  # on |difference| / max(1, |expected|)
SOLVED = 10  # an exit status that no exit() which was left in an answer would give

# Nothing is a multiple of another but what must be, so that no axis can pass for another.
CONFIG = BertConfig(
    vocab_size=29,
    hidden_size=30,
    num_hidden_layers=3,
    num_attention_heads=5,
    intermediate_size=50,
    max_position_embeddings=13,
    type_vocab_size=3,
)

Results = dict[str, Any]
Trial = Iterator[tuple[str, Any]]  # what is tried, in words, and what comes out
Module = TypeVar("Module", bound=nn.Module)


class Exercise(NamedTuple):
    """One of the ten."""

    title: str
    holes: tuple[str, ...]  # module.Class.function, whose bodies are taken out
    task: str
    build: Callable[[], Any]  # the subject
    trial: Callable[[Any], Trial]  # of the subject


def draw(shape: tuple[int, ...], name: str) -> Tensor:
    """Random numbers that depend on the name alone, so that a module too many changes no other."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def filled(module: Module) -> Module:
    """Draw every parameter, LayerNorm and biases too, as 1 and 0 would hide mistakes."""
    module = module.double().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.5
            parameter.copy_(draw(tuple(parameter.shape), name) * scale + (parameter.dim() == 1))
    return module


def filled_model() -> BertModel:
    """A whole small BERT."""
    return filled(BertModel(CONFIG))


def nothing() -> None:
    """The subject of a trial that needs none."""


def error_of(function: Callable[[], Any], *told: str) -> str:
    """The name of the error that a call raises, if the docstring promises it; and what it lacks."""
    try:
        function()
    except ValueError as error:
        lacks = [word for word in told if word not in str(error)]
        return type(error).__name__ + "".join(f" that does not say {word}" for word in lacks)
    return "no error"


def note(seen: Results, name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
    """A forward hook that writes down what a module gave."""
    seen[name] = output


def drop(module: nn.Module, share: float) -> None:
    """Train with this share dropped."""
    for part in module.train().modules():
        if isinstance(part, nn.Dropout):
            part.p = share


def padded() -> Tensor:
    """A bias that keeps the last three of seven tokens out of the second sentence."""
    bias = torch.zeros(2, 1, 1, 7, dtype=torch.float64)
    bias[1, ..., 4:] = -1e9
    return bias


def try_attention(attention: nn.Module) -> Trial:
    """Exercise 1."""
    vectors = draw((2, 7, 30), "vectors")
    yield "one token, which can only read itself", attention(vectors[:, :1], None)
    yield "two sentences", attention(vectors, None)
    yield "two sentences, one of them padded", attention(vectors, padded())
    seen: Results = {}
    parts = ("scores", "probabilities", "context")
    for part in parts:
        getattr(attention, part).register_forward_hook(partial(note, seen, part))
    attention(vectors, padded())
    for part in parts:
        yield f"the same, what a hook on {part} sees", seen.get(part)
    drop(attention, 1.0)
    yield "in training, with all probabilities dropped", attention(vectors, None)
    drop(attention, 0.5)
    nn.init.eye_(attention.get_parameter("output.weight"))
    nn.init.zeros_(attention.get_parameter("output.bias"))
    torch.manual_seed(0)
    many = draw((100, 1, 30), "many")
    times = (attention(many, None) / attention.get_submodule("value")(many)).view(500, 6).abs()
    what = "in training, with half of them dropped: a head reads a lone token twice, or not at all"
    yield what, times.detach().round(decimals=9).unique(dim=0)


def build_feed_forward() -> nn.ModuleDict:
    """One with each activation."""
    acts = ("relu", "gelu_new", "gelu_pytorch_tanh", "gelu")
    kinds = {act: FeedForward(dataclasses.replace(CONFIG, hidden_act=act)) for act in acts}
    return filled(nn.ModuleDict(kinds))


def try_feed_forward(kinds: nn.ModuleDict) -> Trial:
    """Exercise 2."""
    vectors = draw((2, 7, 30), "vectors") * 2
    yield "the names of the submodules", sorted(dict(kinds["relu"].named_children()))
    for act, kind in kinds.items():
        yield f"hidden_act {act!r}", kind(vectors)


def try_embeddings(embeddings: nn.Module) -> Trial:
    """Exercise 3."""
    ids = torch.arange(14).view(2, 7) * 5 % 29
    yield "one token in segment 0", embeddings(ids[:, :1], ids[:, :1] * 0)
    yield "two sentences in segment 0", embeddings(ids, ids * 0)
    yield "two sentences in segments 0 to 2", embeddings(ids, ids % 3)
    long = torch.zeros(1, 14, dtype=torch.int64)
    yield "13 tokens, where 13 fit", error_of(lambda: embeddings(long[:, 1:], long[:, 1:]))
    yield "14 tokens, where 13 fit", error_of(lambda: embeddings(long, long), "14", "13")
    drop(embeddings, 1.0)
    yield "in training, with everything dropped", embeddings(ids, ids * 0)
    with torch.no_grad():
        for table in ("word", "token_type", "position"):
            embeddings.eval().get_parameter(f"{table}.weight").mul_(1e-6)
    yield "rows so small that LayerNorm's eps shows any factor", embeddings(ids, ids * 0)


def try_attention_bias(_: None) -> Trial:
    """Exercise 4."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]])
    scores = draw((3, 2, 4, 4), "scores") * 3
    bias = attention_bias(mask, torch.float64)
    yield "the softmax of scores + bias", (scores + bias).softmax(dim=-1)
    yield "its shape", list(bias.shape)
    none = attention_bias(mask * 0, torch.float32)
    yield "no NaN where all is padding", (none + none).softmax(dim=-1).double()
    yield "of a mask of bools", attention_bias(mask.bool(), torch.float64)
    for dtype in (torch.float16, torch.bfloat16):
        yield f"for {dtype}", attention_bias(mask, dtype)


def try_word_pieces(_: None) -> Trial:
    """Exercise 5."""
    names = ["[UNK]", "un", "##aff", "##able", "##a", "a", "ab", "##bc", "##b", "b", "able", "##c"]
    pieces = WordPieces({name: number for number, name in enumerate(names)})
    few = WordPieces({"[UNK]": 7, "a": 1, "ab": 2, "##bc": 3})
    for word in ("a", "ab", "unable", "unaffable", "aunab"):
        yield f"{word!r} of {', '.join(names)}", list(pieces[word])
    yield "'unx' of the same, where nothing is 'x'", list(pieces["unx"])
    yield "'abc' of a, ab, ##bc: what is taken is not given back", list(few["abc"])


def try_spans(_: None) -> Trial:
    """Exercise 6."""
    text = "I'm the walrus."
    tokens = ["[CLS]", "i", "'", "m", "the", "wal", "##rus", ".", "[SEP]", "wal", "[SEP]"]
    offsets = [(0, 0), (0, 1), (1, 2), (2, 3), (4, 7), (8, 11), (11, 14), (14, 15), (0, 0), (0, 3)]
    added = [int(token.startswith("[")) for token in tokens]
    segments = [0] * 9 + [1] * 2
    words = [None, 0, 1, 2, 3, 4, 4, 5, None, 0, None]
    encoding = Encoding([0] * 11, segments, [1] * 11, tokens, [*offsets, (0, 0)], words, added)
    states = draw((11, 3), "states").numpy()

    def mean(*spans: tuple[int, int]) -> Tensor:
        wanted = Text(text, "wal", spans=spans)
        return torch.from_numpy(read(Reading(unit="span"), wanted, encoding, states).vectors)

    yield "the mean of 'the'", mean((4, 7))
    yield "of 'walrus'", mean((8, 14))
    yield "of 'alru', which begins and ends inside a piece", mean((9, 13))
    yield "of 'I', where [CLS] and [SEP] have offsets (0, 0)", mean((0, 1))
    yield "of the whole first text, and nothing of the second", mean((0, 15))
    yield "of 'walrus' and 'the', a row each", mean((8, 14), (4, 7))
    yield "of a space, which no token has", error_of(lambda: mean((3, 4)))


def try_mix(_: None) -> Trial:
    """Exercise 7."""
    states = [draw((2, 3, 5), f"state {n}") for n in range(4)]
    yield "one layer", Reading(layers=-1).mix(states[:1])
    for way in ("sum", "mean", "max", "concat", "stack", (0.1, 0.2, 0.3, 0.4)):
        reading = Reading(layers=[-4, -3, -2, -1], combine=way)
        yield f"the last four layers, combine={way!r}", reading.mix(states)
    halves = [state.half() for state in states]
    yield "the sum of four in float16", Reading(layers=[0, 1, 2, 3]).mix(halves)
    yield "one layer in float16", Reading(layers=-1).mix(halves[:1])


def try_capture(model: BertModel) -> Trial:
    """Exercise 8."""
    ids = torch.arange(7)[None]
    first, last = "encoder.layers.0", "encoder.layers.2"
    before = count_hooks(model)
    with minibert.capture(model, [first, last]) as seen:
        output = model(ids).last_hidden_state
    yield f"what {last} gave", seen[last]
    yield f"what {first} gave", seen[first]
    yield "the output of the model, which must not change", output
    model(ids + 1)
    yield "after the block, another pass changes nothing", seen[last]
    with minibert.capture(model, first) as seen, minibert.edit(model, {first: lambda x: x * 2}):
        model(ids)
    yield "of an edit that was placed later, what the next layer read", seen[first]
    unknown = minibert.capture(model, "encoder.layers.9")
    yield "a name that no module has", error_of(unknown.__enter__)
    yield from try_options(model, first)
    yield "how many hooks are left behind", count_hooks(model) - before

    def fail() -> None:
        with minibert.capture(model, first, all_passes=True):
            raise ValueError

    yield "an error inside the block, which must come out", error_of(fail)
    yield "how many hooks it leaves behind", count_hooks(model) - before


def try_options(model: BertModel, name: str) -> Trial:
    """Exercise 8, what its docstring says of the arguments."""
    ids = torch.arange(7)[None]
    with minibert.capture(model, name) as seen:
        model(ids).last_hidden_state.square().sum().backward()
    yield "its gradient, after backward()", gradient_or_why(seen, name)
    with minibert.capture(model, name, detach=True) as seen:
        model(ids)
    yield "detach=True: does it need a gradient?", seen[name].requires_grad
    with minibert.capture(model, name, to=torch.float32) as seen:
        model(ids)
    yield "to=torch.float32", seen[name]
    with minibert.capture(model, name, positions=[1, -1]) as seen:
        model(ids)
    yield "positions=[1, -1]", seen[name]
    with minibert.capture(model, name, all_passes=True) as seen:
        model(ids)
        model(ids + 1)
    yield "all_passes=True: how many of two", len(seen.passes)
    yield "all_passes=True: the first of two", seen.passes[0][name]


def gradient_or_why(seen: Captured, name: str) -> Tensor | str:
    """The gradient of what was captured, or why there is none."""
    try:
        return seen.gradients[name]
    except ValueError as error:
        return str(error)


def count_hooks(model: nn.Module) -> int:
    """How many there are, of those that run before or after a forward."""
    parts = model.modules()
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)


def build_masked_lm() -> nn.ModuleDict:
    """A head that shares the word embedding, one that has its own, and the embedding."""
    word = nn.Embedding(29, 30)
    tied = filled(MaskedLMHead(CONFIG, HeadConfig("masked-lm"), word))
    untied = filled(MaskedLMHead(CONFIG, HeadConfig("masked-lm", tied=False), word))
    return nn.ModuleDict({"word": word, "tied": tied, "untied": untied})


def try_masked_lm(parts: nn.ModuleDict) -> Trial:
    """Exercise 9."""
    head, untied = parts["tied"], parts["untied"]
    whole, chosen = draw((2, 7, 30), "vectors"), draw((3, 30), "chosen")
    yield "logits of every position", head(BertOutput(whole, None))
    yield "logits of three positions that were chosen", head(BertOutput(chosen, None))
    yield "logits of a head that is not tied", untied(BertOutput(chosen, None))
    with torch.no_grad():
        parts["word"].get_parameter("weight")[5] += 1
    yield "and after the word embedding has changed", head(BertOutput(chosen, None))
    yield "the same of the head that is not tied", untied(BertOutput(chosen, None))
    names = {name: list(parameter.shape) for name, parameter in head.named_parameters()}
    yield "the parameters, by which a checkpoint finds them", dict(sorted(names.items()))


def try_pre_norm(_: None) -> Trial:
    """Exercise 10."""
    model, cases = filled_model(), fixed_inputs(CONFIG)
    changed = make(model, "pre-LN").encoder.layers[0]
    vectors = draw((2, 7, 30), "vectors")
    yield "one pre-LN layer", changed(vectors, None)
    yield "one pre-LN layer, where a sentence is padded", changed(vectors, padded())
    comparison = what_if(model, cases["padded"], "pre-LN")
    same = comparison.differences[0]
    noise = same._replace(relative=same.tolerance / 2)
    for what, differences in {
        "the first state that differs": comparison.differences,
        "and None, where none does": [same],
        "nor one that is within the tolerance": [noise],
    }.items():
        first = comparison._replace(differences=differences).first
        yield what, first and first.name


def _narrow(module: nn.Module) -> None:
    if isinstance(module, SelfAttention):
        scale = math.sqrt(module.num_heads)
        module.scores.register_forward_hook(lambda _module, _inputs, scores: scores / scale)


def _interleave(module: nn.Module) -> None:
    if isinstance(module, SelfAttention):
        heads = module.num_heads
        module.__dict__["_split_heads"] = lambda x: x.unflatten(-1, (-1, heads)).movedim(-1, 1)


def _join_as_it_lies(module: nn.Module) -> None:
    if isinstance(module, SelfAttention):
        heads = module.num_heads
        module.output.register_forward_pre_hook(
            lambda _module, x: x[0].unflatten(-1, (heads, -1)).transpose(1, 2).reshape(x[0].shape)
        )


def _give(to: str, of: str, module: nn.Module) -> None:
    if isinstance(module, SelfAttention):
        setattr(module, to, getattr(module, of))


def _keep_all(module: nn.Module) -> None:
    if isinstance(module, nn.Dropout):
        module.__dict__["forward"] = lambda x: x


def _times_root(module: nn.Module) -> None:
    if isinstance(module, Embeddings):
        scale = math.sqrt(module.word.embedding_dim)
        module.word.register_forward_hook(lambda _module, _inputs, vectors: vectors * scale)


def _exact_gelu(module: nn.Module) -> None:
    if isinstance(module, nn.GELU):
        module.approximate = "none"


# Slips of whoever writes a part anew; as in MISTAKES, to which they are added.
SLIPS: dict[str, Callable[[nn.Module], None]] = {
    "1/sqrt(H) for 1/sqrt(D)": _narrow,
    "heads of every A-th column": _interleave,
    "heads joined without a transpose": _join_as_it_lies,
    "the key's map for the query's": partial(_give, "query", "key"),
    "the query's map for the key's": partial(_give, "key", "query"),
    "a missing dropout": _keep_all,
    "word vectors times sqrt(H)": _times_root,
    "the exact GELU": _exact_gelu,
}


EXERCISES = {
    1: Exercise(
        "Self-attention, [V17] equation (1)",
        (
            "encoder.SelfAttention.forward",
            "encoder.SelfAttention._split_heads",
            "encoder.SelfAttention._attend",
        ),
        "The class's docstring has the equations, and names the submodules in the order of the "
        "data. One path is enough: write the equation out, and leave the fused kernel for dessert.",
        lambda: filled(SelfAttention(CONFIG)),
        try_attention,
    ),
    2: Exercise(
        "The feed-forward layer and its GELU, [V17] equation (2) and [H16]",
        ("encoder.FeedForward.__init__", "encoder.FeedForward.forward", "encoder.activation"),
        "Begin with super().__init__(). config.hidden_act says which activation: 'gelu' is the "
        "exact one, 'gelu_new' and 'gelu_pytorch_tanh' are the approximation by tanh, and 'relu'.",
        build_feed_forward,
        try_feed_forward,
    ),
    3: Exercise(
        "The embeddings, [D18] figure 2",
        ("embeddings.Embeddings.forward",),
        "Three lookups, a sum, and what the figure does not show. More tokens than there are "
        "positions are a ValueError that says how many, and what to do.",
        lambda: filled(Embeddings(CONFIG)),
        try_embeddings,
    ),
    4: Exercise(
        "What keeps padding out: the mask becomes a bias",
        ("model.attention_bias",),
        "Why not -inf? Because a row of nothing but padding would be NaN.",
        nothing,
        try_attention_bias,
    ),
    5: Exercise(
        "WordPiece: the longest match, from the left",
        ("wordpiece.WordPieces._match",),
        "A word to the ids of its pieces. self._starts has the pieces that begin a word, and "
        "self._insides those that continue one, without their ##; self._unknown is the answer "
        "where no piece fits.",
        nothing,
        try_word_pieces,
    ),
    6: Exercise(
        "From characters to tokens: a word of several pieces",
        ("vectors._spans",),
        "text.spans are stretches of characters; encoding.offsets says where each token is from. "
        "Added tokens, and those of a second text, belong to none.",
        nothing,
        try_spans,
    ),
    7: Exercise(
        "The last four layers, summed or side by side, as in [D18] table 7",
        ("vectors.Reading.mix",),
        "self.combine says how: the class's docstring has the words. Half precision is for the "
        "model: what comes out is float32 at least.",
        nothing,
        try_mix,
    ),
    8: Exercise(
        "Capture, with torch's own hooks",
        ("hooks.capture", "hooks._look"),
        "Place a forward hook on each named module, yield a Captured, and take the hooks away "
        "whatever happens in between. find_names, find_module, _keeper and _begin are still there; "
        "_begin moves our hooks behind all others, when a pass begins. Captured._add keeps a "
        "tensor and its gradient, Captured._end a pass.",
        filled_model,
        try_capture,
    ),
    9: Exercise(
        "The masked-LM head, and the decoder that is the word embedding",
        ("heads.MaskedLMHead.__init__", "heads.MaskedLMHead.forward"),
        "The class's docstring has the equation. self.config is the HeadConfig; the layers are "
        "dense, activation, norm and decoder, the parameter is bias. Why has E no copy?",
        build_masked_lm,
        try_masked_lm,
    ),
    10: Exercise(
        "Pre-LN for post-LN: what differs first?",
        ("mistakes._norm_first", "parity.Comparison.first"),
        "Most later models put LayerNorm before the sublayer: x + Sublayer(LayerNorm(x)). Write "
        "that layer, with what an EncoderLayer has; and the property that names the first tensor "
        "which differs. Then ask: why is it not state 0? Which tensor is it inside the layer?",
        nothing,
        try_pre_norm,
    ),
}


def run(number: int) -> dict[str, Results]:
    """What comes out; and where the subject is a module, what would with each mistake or slip."""
    exercise = EXERCISES[number]
    results = {"": {what: _plain(value) for what, value in exercise.trial(exercise.build())}}
    if isinstance(exercise.build(), nn.Module):
        for name, change in {**MISTAKES, **SLIPS}.items():
            subject = copy.deepcopy(exercise.build())
            for module in subject.modules():
                change(module)
            results[name] = {what: _plain(value) for what, value in exercise.trial(subject)}
    return results


def _plain(value: Any) -> Any:
    """Arrays as tensors, and no tensor with a graph; as it is now, not as it will be."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return value.detach().clone() if isinstance(value, Tensor) else value


def difference(expected: Any, got: Any) -> str:
    """What is wrong with a result, in one line; "" if nothing is."""
    if not isinstance(expected, Tensor):
        return "" if got == expected else f"expected {expected!r}, got {got!r}"
    if not isinstance(got, Tensor):
        forgotten = "; is a return missing?" if got is None else ""
        kind = got if isinstance(got, str) else type(got).__name__
        return f"expected a tensor, got {kind}{forgotten}"
    for what in ("shape", "dtype"):
        ours, theirs = getattr(expected, what), getattr(got, what)
        if ours != theirs:
            return f"expected {what} {ours}, got {theirs}".replace("torch.Size", "")
    right, wrong = expected.double(), got.double()
    gaps = (right - wrong).abs() / right.abs().clamp(min=1)
    gaps = gaps.nan_to_num(torch.inf, torch.inf)
    count = int((gaps > TOLERANCE).sum())
    if not count:
        return ""
    at = torch.unravel_index(gaps.argmax(), gaps.shape)
    place = [int(index) for index in at]
    return (
        f"{count} of {gaps.numel()} numbers differ, most of all {place}: "
        f"expected {right[at].item():.6g}, got {wrong[at].item():.6g}"
    )


def judge(number: int, expected: dict[str, Results]) -> str:
    """The first result that is wrong, in two lines; "" if all are right."""
    right = expected[""]
    exercise = EXERCISES[number]
    for done, (what, value) in enumerate(exercise.trial(exercise.build())):
        got = _plain(value)
        problem = difference(right[what], got)
        if problem:
            alike = [
                mistake
                for mistake, results in expected.items()
                if mistake and not difference(results[what], got)
            ]
            hint = f", as {alike[0]} would give" if alike else ""
            return f"not yet, {done} of {len(right)} are right: {what}\n  {problem}{hint}"
    return ""


if __name__ == "__main__":
    if Path(minibert.__file__).parents[1] != Path(os.environ["PYTHONPATH"]):
        raise SystemExit(f"tried {minibert.__file__}, not {os.environ['PYTHONPATH']}")
    verdict = judge(int(sys.argv[1]), torch.load(sys.argv[2], weights_only=True))
    raise SystemExit(verdict or SOLVED)
