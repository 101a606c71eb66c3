"""The classic mistakes of BERT implementations: made on purpose, to recognise them in others.

None of them is an error that a program would report: each gives other numbers of the same shape.
`diagnose` makes them one by one, and says which gives what another BERT gave; `what_if` shows how
far one of them, or another change, moves each state. Read next: verify.py.
"""

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from minibert.bundle import LOGITS, Inputs, trace, trace_cases
from minibert.embeddings import Embeddings
from minibert.encoder import EncoderLayer, SelfAttention
from minibert.hooks import state_names
from minibert.model import BertModel
from minibert.parity import Comparison, compare

# What else what_if can change, besides the mistakes.
_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_OTHER_SEGMENT = "the other segment"
_ALONE = "each text alone"


def diagnose(model: BertModel, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    """Find the mistake that explains the first difference between a bundle and a dump.

    Each mistake is made in a copy of the model. It is the likely culprit if the copy gives the
    first tensor that differs as the dump has it, within the tolerance, and closest of all.

    Args:
        model: the model that the bundle was recorded with.
        expected: what read_bundle gave.
        got: what read_dump gave.

    Returns:
        How "differs at ..." goes on: "as the tanh GELU would; with that, nothing else differs".

    Raises:
        ValueError: if nothing differs, or the model is not the one of the bundle.
    """
    first = compare(expected, got).first
    if first is None:
        raise ValueError("nothing differs, so there is nothing to diagnose")
    if first.name in LOGITS:
        return "so it is the head, as what it reads agrees"
    key = f"{first.case}/{first.name}"
    got = {key: tensor for key, tensor in got.items() if key.rpartition("/")[2] not in LOGITS}
    model = copy.deepcopy(model).to(expected[key].dtype)
    cases = _inputs(expected)
    here = {first.case: cases[first.case]}
    if compare(expected, {key: trace_cases(model, here)[key]}).first is not None:
        raise ValueError("this is not the model that the bundle was recorded with")
    matches: dict[float, str] = {}
    for name in MISTAKES:
        (one,) = compare(trace_cases(make(model, name), here), {key: got[key]}).differences
        if one.agrees:
            matches[one.relative] = name
    if not matches:
        return f"as none of the {len(MISTAKES)} classic mistakes would"
    likely = matches[min(matches)]
    left = compare(trace_cases(make(model, likely), cases), got).first
    rest = f"the next to differ is {left.name}" if left else "nothing else differs"
    return f"as {likely} would; with that, {rest}"


def _inputs(expected: Mapping[str, Tensor]) -> dict[str, Inputs]:
    """The inputs of each case of a bundle."""
    return {
        case: Inputs(*(expected[f"{case}/{name}"] for name in Inputs._fields))
        for case in dict.fromkeys(key.partition("/")[0] for key in expected)
    }


def make(model: BertModel, mistake: str) -> BertModel:
    """A copy of a model, with one of `MISTAKES`."""
    mutant = copy.deepcopy(model)
    for module in mutant.modules():
        MISTAKES[mistake](module)
    return mutant


def what_if(model: BertModel, inputs: Inputs, change: str) -> Comparison:
    """Run a model with one thing changed, and show how far each state moves.

    Args:
        model: in eval mode.
        inputs: what both runs read.
        change: one of `MISTAKES`; a dtype such as "bfloat16"; "the other segment", each token being
            of segment 1 if it was of 0, else of 0; or "each text alone", not in one batch.

    Returns:
        A Difference per state from 0 to L, and for the pooler. Its tolerance says what noise is.

    Raises:
        ValueError: for a change that is none of these, or a row without any real token.
    """
    if not inputs.attention_mask.any(dim=1).all():
        raise ValueError("a row has no real token, and its states mean nothing; leave it out")
    names = state_names(model) + ["pooler"] * (model.pooler is not None)
    if change in MISTAKES:
        changed = trace(make(model, change), inputs, names)
    elif change in _DTYPES:
        changed = trace(copy.deepcopy(model).to(_DTYPES[change]), inputs, names)
    elif change == _OTHER_SEGMENT:
        other = (inputs.token_type_ids == 0).long()
        changed = trace(model, inputs._replace(token_type_ids=other), names)
    elif change == _ALONE:
        changed = _alone(model, inputs, names)
    else:
        known = ", ".join([*MISTAKES, *_DTYPES, _OTHER_SEGMENT, _ALONE])
        raise ValueError(f"change must be one of {known}, got {change!r}")
    expected = {f"/{name}": tensor for name, tensor in inputs._asdict().items()}
    expected |= {f"/{name}": tensor for name, tensor in trace(model, inputs, names).items()}
    return compare(expected, {f"/{name}": tensor for name, tensor in changed.items()})


def _alone(model: BertModel, inputs: Inputs, names: list[str]) -> dict[str, Tensor]:
    """Trace row by row, each without the padding at its end, which comes back as zeros."""
    batch, tokens = inputs.input_ids.shape
    rows = []
    for number in range(batch):
        row = Inputs(*(tensor[number : number + 1] for tensor in inputs))
        length = int(row.attention_mask[0].nonzero().max()) + 1
        traced = trace(model, Inputs(*(tensor[:, :length] for tensor in row)), names)
        padding = (0, 0, 0, tokens - length)
        rows.append({
            name: tensor if name == "pooler" else nn.functional.pad(tensor, padding)
            for name, tensor in traced.items()
        })  # fmt: skip
    return {name: torch.cat([row[name] for row in rows]) for name in names}


def _tanh_gelu(module: nn.Module) -> None:
    if isinstance(module, nn.GELU):
        module.approximate = "tanh"


def _large_eps(module: nn.Module) -> None:
    if isinstance(module, nn.LayerNorm):
        module.eps = 1e-5


def _norm_over_tokens(module: nn.Module) -> None:
    if isinstance(module, nn.LayerNorm):
        _replace_forward(module, _over_tokens)


def _over_tokens(norm: nn.LayerNorm, hidden_states: Tensor) -> Tensor:
    variance, mean = torch.var_mean(hidden_states, dim=1, keepdim=True, unbiased=False)
    normalised: Tensor = (hidden_states - mean) / (variance + norm.eps).sqrt()
    return normalised * norm.weight + norm.bias


def _pre_norm(module: nn.Module) -> None:
    if isinstance(module, EncoderLayer):
        _replace_forward(module, _norm_first)


def _norm_first(layer: EncoderLayer, hidden_states: Tensor, bias: Tensor | None) -> Tensor:
    attended: Tensor = layer.attention(layer.attention_norm(hidden_states), bias)
    attended = hidden_states + attended
    transformed: Tensor = layer.feed_forward(layer.feed_forward_norm(attended))
    return attended + transformed


def _no_scale(module: nn.Module) -> None:
    if isinstance(module, SelfAttention):
        scale = math.sqrt(module.query.out_features / module.num_heads)
        module.scores.register_forward_hook(lambda _module, _inputs, scores: scores * scale)


def _swapped(module: nn.Module) -> None:
    if isinstance(module, SelfAttention):
        module.query, module.key = module.key, module.query


def _one_segment(module: nn.Module) -> None:
    if isinstance(module, Embeddings):
        module.token_type.register_forward_pre_hook(lambda _module, inputs: inputs[0] * 0)


def _no_segment(module: nn.Module) -> None:
    if isinstance(module, Embeddings):
        module.token_type.register_forward_hook(lambda _module, _inputs, output: output * 0)


def _positions_from_one(module: nn.Module) -> None:
    if isinstance(module, Embeddings):
        last = module.position.num_embeddings - 1
        module.position.register_forward_pre_hook(
            lambda _module, inputs: (inputs[0] + 1).clamp(max=last)
        )


def _no_mask(module: nn.Module) -> None:
    if isinstance(module, EncoderLayer):
        module.register_forward_pre_hook(lambda _module, inputs: (inputs[0], None))


def _replace_forward(module: nn.Module, forward: Callable[..., Tensor]) -> None:
    module.__dict__["forward"] = partial(forward, module)


# What a mistake is called -> how it is made in one module of a model; most modules it leaves alone.
MISTAKES: dict[str, Callable[[nn.Module], None]] = {
    "the tanh GELU": _tanh_gelu,
    "eps 1e-5": _large_eps,
    "pre-LN": _pre_norm,
    "a missing 1/sqrt(D)": _no_scale,
    "ignored segments": _one_segment,
    "a missing segment embedding": _no_segment,
    "positions counted from 1": _positions_from_one,
    "an ignored mask": _no_mask,
    "swapped query and key": _swapped,
    "LayerNorm over the tokens": _norm_over_tokens,
}
