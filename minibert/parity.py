"""Is another BERT this BERT? Compare every tensor, and name the first that differs.

`compare` takes a bundle and a dump, `live` a model of Hugging Face's library that the caller has
loaded. Read next: mistakes.py, which says why a tensor differs.
"""

import json
import math
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from minibert.bundle import LOGITS, TENSORS, Inputs, compared_names, trace_cases
from minibert.heads import Head
from minibert.model import BertModel
from minibert.names import in_any_layer

# How far two runs may be apart, |difference| / max(1, |expected|) at every number; for the coarser
# of both dtypes. Two to three times what was measured: 6.7e-5 between two libraries in float32; in
# the other two 0.11 and 0.43, minilm against float64. Each is where large numbers cancel, at the
# output of a linear map. The smallest classic mistake, the tanh GELU, is 4.7e-4 off at its place.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-4,
    torch.float16: 0.3,
    torch.bfloat16: 1.0,
}


class Difference(NamedTuple):
    """How far one tensor is from what was expected, at real positions; in the tensor's own unit."""

    case: str
    name: str
    largest: float  # the largest absolute difference; infinite where there is a NaN
    relative: float  # the largest |difference| / max(1, |expected|)
    cosine: float  # of both tensors as one long vector each, in [-1, 1]
    where: tuple[int, ...]  # the place of the largest relative difference
    tolerance: float  # what `relative` may be
    problem: str = ""  # what makes a comparison impossible, such as another shape

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance."""
        return not self.problem and self.relative <= self.tolerance


class Comparison(NamedTuple):
    """All tensors that were compared, in data flow, and the keys that one side did not have."""

    differences: list[Difference]
    missing: list[str]
    why: str = ""  # what diagnose says of the first difference

    @property
    def first(self) -> Difference | None:
        """The first tensor in data flow that differs, over all cases; None if all agree."""
        return next((one for one in self.differences if not one.agrees), None)

    @property
    def summary(self) -> str:
        """One sentence: whether all agrees, or up to which tensor, where it differs, and why."""
        lacks = f"; {len(self.missing)} more are not there" if self.missing else ""
        if self.first is None:
            return f"all {len(self.differences)} tensors agree{lacks}"
        names = list(dict.fromkeys(one.name for one in self.differences))
        before = names[: names.index(self.first.name)]
        start = f"agrees up to {before[-1]}, " if before else ""
        why = f": {self.why}" if self.why else ""
        return f"{start}differs at {self.first.name} (case {self.first.case}){why}{lacks}"


def compare(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> Comparison:
    """Compare the tensors of two BERTs, at the positions that are not padding.

    The inputs must be the same. Scores of padded keys are left out, as the number that keeps them
    out is each implementation's own; their probabilities are compared, and are 0.

    Args:
        expected: what read_bundle or trace_cases gave.
        got: part of the same keys, such as read_dump gave, in any floating dtypes.

    Returns:
        A Difference per tensor of `got`, in the order of `expected`, which is the data flow.

    Raises:
        ValueError: if `got` has no tensor, a key that `expected` lacks, or other inputs.
    """
    for key, tensor in got.items():
        if key not in expected:
            near = get_close_matches(key, expected, n=5, cutoff=0)
            raise ValueError(f"the bundle has no tensor {key!r}; near are {', '.join(near)}")
        is_input = key.rpartition("/")[2] in Inputs._fields
        if is_input and not torch.equal(tensor.long(), expected[key]):
            raise ValueError(f"{key} is not the bundle's: both must run on the same inputs")
    keys = [key for key in expected if key.rpartition("/")[2] not in Inputs._fields]
    found = [key for key in keys if key in got]
    if not found:
        raise ValueError(f"nothing to compare: expected tensors such as {keys[0]!r}")
    differences = []
    for key in found:
        mask = expected[f"{key.partition('/')[0]}/attention_mask"].bool()
        differences.append(_difference(key, expected[key], got[key], mask))
    return Comparison(differences, [key for key in keys if key not in got])


def _difference(key: str, expected: Tensor, got: Tensor, mask: Tensor) -> Difference:
    case, _, name = key.partition("/")
    if got.shape != expected.shape or got.dtype not in TOLERANCE:
        problem = f"{got.dtype} {tuple(got.shape)}, expected {tuple(expected.shape)}"
        return Difference(case, name, torch.inf, torch.inf, 0.0, (), 0.0, problem)
    counts = _real(name, expected.dim(), mask).expand(expected.shape)
    right = expected.double().masked_fill(~counts, 0)
    theirs = got.double().masked_fill(~counts, 0)
    gaps = (theirs - right).abs().nan_to_num(torch.inf, torch.inf)
    ratios = gaps / right.abs().clamp(min=1)
    worst = torch.unravel_index(ratios.argmax(), ratios.shape)
    norms = right.norm() * theirs.norm()
    return Difference(
        case,
        name,
        largest=gaps.max().item(),
        relative=ratios.max().item(),
        cosine=((right * theirs).sum() / norms).item() if norms > 0 else float(not gaps.any()),
        where=tuple(int(place) for place in worst),
        tolerance=max(TOLERANCE[expected.dtype], TOLERANCE[got.dtype]),
    )


def _real(name: str, dimensions: int, mask: Tensor) -> Tensor:
    """Which numbers of a tensor mean something, from the mask (B, T)."""
    if dimensions == 2:
        return mask[:, :1]  # (B, 1), as the pooler, and what reads it, reads [CLS] alone
    if name.endswith("attention.scores"):
        return mask[:, None, :, None] & mask[:, None, None, :]  # (B, 1, T, T)
    if name.endswith(("attention.probabilities", "attention.context")):
        return mask[:, None, :, None]  # (B, 1, T, 1)
    return mask[:, :, None]  # (B, T, 1)


def to_table(comparison: Comparison) -> str:
    """A row per tensor, that of the case in which it is furthest off; the summary comes last."""
    worst: dict[str, Difference] = {}
    for one in comparison.differences:
        known = worst.get(one.name)
        if known is None or one.problem or one.relative > known.relative:
            worst[one.name] = one
    width = max(len(name) for name in worst)
    rows = [f"{'':{width}}  largest  relative  cosine      tolerance  at"]
    for one in worst.values():
        end = one.problem or f"{one.case}{list(one.where)}"
        rows.append(
            f"{one.name:{width}}  {one.largest:.1e}  {one.relative:.1e}   {one.cosine:.8f}  "
            f"{one.tolerance:.1e}    {end}{'' if one.agrees else '  DIFFERS'}"
        )
    return "\n".join([*rows, comparison.summary])


def to_json(comparison: Comparison) -> str:
    """One JSON object: the summary, every tensor of every case, and the keys that are missing."""
    records = [{**one._asdict(), "agrees": one.agrees} for one in comparison.differences]
    for one in records:
        for key, value in one.items():
            if isinstance(value, float) and not math.isfinite(value):
                one[key] = str(value)  # JSON has neither infinity nor NaN
    about = {"agrees": comparison.first is None, "summary": comparison.summary}
    return json.dumps({**about, "tensors": records, "missing": comparison.missing}, indent=1)


def live(
    model: BertModel, theirs: nn.Module, cases: Mapping[str, Inputs], head: Head | None = None
) -> Comparison:
    """Run Hugging Face's model beside this one, and compare every tensor that its modules show.

    Args:
        model: in eval mode.
        theirs: transformers' BertModel, or with a head its model with that head; in eval mode, and
            loaded with attn_implementation="eager": no other kernel shows the probabilities.
        cases: what both read, such as fixed_inputs gives.
        head: of the model, in eval mode.

    Raises:
        ValueError: if a model is in training mode, or `theirs` lacks a module.
    """
    encoder = theirs if head is None else theirs.get_submodule("bert")
    seen: dict[str, Tensor] = {}
    for case, inputs in cases.items():
        traced = trace_theirs(encoder, inputs, model)
        if head is not None:
            traced |= _their_logits(theirs, inputs, head.config.name)
        seen |= {f"{case}/{name}": tensor for name, tensor in traced.items()}
    return compare(trace_cases(model, cases, head), seen)


def trace_theirs(theirs: nn.Module, inputs: Inputs, model: BertModel) -> dict[str, Tensor]:
    """Run Hugging Face's model alone; `model` says which tensors there are. Raises as live does."""
    if theirs.training:
        raise ValueError("their model is in training mode, in which no two runs agree; call eval()")
    modules, device = dict(theirs.named_modules()), next(theirs.parameters()).device
    seen: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []
    try:
        for name, module_name in _their_modules(model).items():
            if name.startswith("pooler") and getattr(theirs, "pooler", theirs) is None:
                continue  # their heads that don't read it leave it out
            if module_name not in modules:
                raise ValueError(f"their model has no module {module_name!r}; is it a BertModel?")
            keep = partial(_keep_theirs, seen, name, model.config.num_attention_heads)
            handles.append(modules[module_name].register_forward_hook(keep))
        read = {name: tensor.to(device) for name, tensor in inputs._asdict().items()}
        with torch.no_grad():
            theirs(**read, output_attentions=True)  # without it, version 4 keeps them to itself
    finally:
        for handle in handles:
            handle.remove()
    # Their positions are (1, T, H), for all rows.
    seen["embeddings.position"] = seen["embeddings.position"].expand_as(seen["embeddings.word"])
    return seen


@torch.no_grad()
def _their_logits(theirs: nn.Module, inputs: Inputs, head: str) -> dict[str, Tensor]:
    """Run Hugging Face's model with its head, and give its logits in the shapes of minibert."""
    device = next(theirs.parameters()).device
    read = {name: tensor.to(device) for name, tensor in inputs._asdict().items()}
    if head == "multiple-choice":  # each row is a question with its only choice
        read = {name: tensor[:, None] for name, tensor in read.items()}
    output = theirs(**read)
    if head == "question-answering":
        return {"logits": torch.stack([output.start_logits, output.end_logits], dim=-1).cpu()}
    return {name: tensor.cpu() for name, tensor in output.items() if name in LOGITS}


def _their_modules(model: BertModel) -> dict[str, str]:
    """Own name -> their module, for the tensors that one of their modules computes."""
    names = {}
    for name in compared_names(model):
        module = TENSORS[in_any_layer(name)].transformers.partition(" ")[0]
        number = next((part for part in name.split(".") if part.isdigit()), "")
        if module != "-":
            names[name] = module.replace("layer.i", f"layer.{number}")
    return names


def _keep_theirs(
    seen: dict[str, Tensor],
    name: str,
    heads: int,
    _module: nn.Module,
    _inputs: tuple[Tensor, ...],
    output: Tensor | tuple[Tensor | None, ...],
) -> None:
    """Keep what a module gave; their attention gives the context (B, T, H) and probabilities."""
    index = 1 if name.endswith("attention.probabilities") else 0
    tensor = output[index] if isinstance(output, tuple) else output
    if tensor is not None and name.endswith("attention.context"):
        tensor = tensor.view(*tensor.shape[:2], heads, -1).transpose(1, 2)  # (B, A, T, D)
    if tensor is not None:
        seen[name] = tensor.cpu()
