import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ODD, random_batch, random_bert_with, random_model
from safetensors.torch import save_file
from test_model import MUTATIONS
from torch import Tensor

from minibert.bert import Bert
from minibert.bundle import Inputs, fixed_inputs, record, trace_cases
from minibert.cli import main
from minibert.hooks import state_names
from minibert.mistakes import MISTAKES, diagnose, make, what_if
from minibert.model import BertModel
from minibert.parity import compare

LAYER = "encoder.layers.0."

# What each mistake gives first, and after which tensor, in data flow.
FIRST = {
    "the tanh GELU": (LAYER + "feed_forward.intermediate", LAYER + "feed_forward.activation"),
    "eps 1e-5": ("embeddings.position", "embeddings.norm"),
    "pre-LN": ("embeddings", LAYER + "attention.query"),
    "a missing 1/sqrt(D)": (LAYER + "attention.value", LAYER + "attention.scores"),
    "ignored segments": ("embeddings.word", "embeddings.token_type"),
    "a missing segment embedding": ("embeddings.word", "embeddings.token_type"),
    "positions counted from 1": ("embeddings.token_type", "embeddings.position"),
    "an ignored mask": (LAYER + "attention.scores", LAYER + "attention.probabilities"),
    "swapped query and key": ("embeddings", LAYER + "attention.query"),
    "LayerNorm over the tokens": ("embeddings.position", "embeddings.norm"),
}


@pytest.fixture(scope="module")
def model() -> BertModel:
    return random_model(ODD, torch.float64)


@pytest.fixture(scope="module")
def expected(model: BertModel) -> dict[str, Tensor]:
    return trace_cases(model, fixed_inputs(ODD))


def dump_of(model: BertModel) -> dict[str, Tensor]:
    return trace_cases(model, fixed_inputs(model.config))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_recognised(
    mistake: str, model: BertModel, expected: dict[str, Tensor]
) -> None:
    got = dump_of(make(model, mistake))
    why = diagnose(model, expected, got)
    assert why == f"as {mistake} would; with that, nothing else differs"
    before, at = FIRST[mistake]
    summary = compare(expected, got)._replace(why=why).summary
    assert summary.startswith(f"agrees up to {before}, differs at {at} (case ")
    assert summary.endswith(f"): {why}")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_states_alone_are_enough(
    mistake: str, model: BertModel, expected: dict[str, Tensor]
) -> None:
    states = {f"{case}/{name}" for name in state_names(model) for case in fixed_inputs(ODD)}
    got = {key: tensor for key, tensor in dump_of(make(model, mistake)).items() if key in states}
    assert f"as {mistake} would" in diagnose(model, expected, got)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_float32_on_real_weights(mistake: str, minilm: Bert) -> None:
    model = copy.deepcopy(minilm.model).double()
    cases = {name: fixed_inputs(ODD)[name] for name in ("short", "pair", "padded")}
    expected = trace_cases(model, cases)
    got = trace_cases(make(minilm.model, mistake), cases)
    assert compare(expected, got).first is not None
    assert f"as {mistake} would" in diagnose(minilm.model, expected, got)


# The mistakes of tests/test_model.py are written apart from those of the package, and in other
# ways; those in which both agree on what the mistake is must be told by their names.
@pytest.mark.parametrize(
    ("mutation", "mistake"),
    [
        ("tanh GELU", "the tanh GELU"),
        ("eps 1e-5", "eps 1e-5"),
        ("pre-LN", "pre-LN"),
        ("query and key swapped", "swapped query and key"),
        ("LayerNorm over the tokens", "LayerNorm over the tokens"),
    ],
)
def test_mistakes_that_others_made(
    mutation: str, mistake: str, model: BertModel, expected: dict[str, Tensor]
) -> None:
    mutant = copy.deepcopy(model)
    MUTATIONS[mutation](mutant)
    assert diagnose(model, expected, dump_of(mutant)).startswith(f"as {mistake} would; ")


def test_a_mistake_that_is_not_classic(model: BertModel, expected: dict[str, Tensor]) -> None:
    mutant = copy.deepcopy(model)
    MUTATIONS["layers swapped"](mutant)
    assert diagnose(model, expected, dump_of(mutant)) == "as none of the 10 classic mistakes would"


def test_the_closest_mistake_is_named(model: BertModel, expected: dict[str, Tensor]) -> None:
    # In bfloat16 a tolerance is wide enough for more than one mistake.
    got = {
        key: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for key, tensor in dump_of(make(model, "positions counted from 1")).items()
    }
    assert diagnose(model, expected, got).startswith("as positions counted from 1 would; ")


def test_two_mistakes(model: BertModel, expected: dict[str, Tensor]) -> None:
    got = dump_of(make(make(model, "the tanh GELU"), "positions counted from 1"))
    assert diagnose(model, expected, got) == (
        "as positions counted from 1 would; with that, the next to differ is "
        "encoder.layers.0.feed_forward.activation"
    )


def test_a_mistake_in_a_model_that_has_one(model: BertModel, expected: dict[str, Tensor]) -> None:
    got = dump_of(make(make(model, "pre-LN"), "the tanh GELU"))
    assert diagnose(model, expected, got) == (
        "as pre-LN would; with that, the next to differ is encoder.layers.0.feed_forward.activation"
    )


def test_a_diagnosis_that_cannot_be_made(model: BertModel, expected: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="nothing differs, so there is nothing to diagnose"):
        diagnose(model, expected, expected)
    got = dump_of(make(model, "pre-LN"))
    with pytest.raises(ValueError, match="not the model that the bundle was recorded with"):
        diagnose(random_model(ODD, torch.float64, seed=1), expected, got)


def test_a_mistake_is_made_in_a_copy(model: BertModel, expected: dict[str, Tensor]) -> None:
    for mistake in MISTAKES:
        make(model, mistake)
    assert compare(expected, dump_of(model)).first is None


def test_the_command_names_the_mistake(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, dump = tmp_path / "bundle", tmp_path / "dump.safetensors"
    assert main(["record", str(bundle), "--model", str(folder)]) == 0
    assert capsys.readouterr().out == ""
    mutant = make(random_model(ODD), "the tanh GELU")
    tensors = {key: tensor.clone().contiguous() for key, tensor in dump_of(mutant).items()}
    save_file(tensors, dump)
    assert main(["judge", str(bundle), str(dump), "--model", str(folder)]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == (
        "agrees up to encoder.layers.0.feed_forward.intermediate, differs at encoder.layers.0."
        "feed_forward.activation (case single): as the tanh GELU would; with that, nothing else "
        "differs"
    )
    assert captured.err == f"minibert: {dump} differs from {bundle}\n"


# How far each change moves the last state of a random model, at least; what is noise, at most.
CHANGES: dict[str, Callable[[float], bool]] = {
    **{name: lambda moved: moved > 1e-4 for name in MISTAKES if name != "eps 1e-5"},
    "eps 1e-5": lambda moved: 1e-7 < moved < 1e-3,
    "the other segment": lambda moved: moved > 1,
    "each text alone": lambda moved: 0 < moved < 1e-12,
    "float64": lambda moved: moved == 0,
    "float32": lambda moved: 1e-7 < moved < 1e-5,
    "float16": lambda moved: 1e-4 < moved < 0.1,
    "bfloat16": lambda moved: 1e-3 < moved < 1,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_if(change: str, model: BertModel) -> None:
    inputs = Inputs(*random_batch(ODD, 5, 17))
    comparison = what_if(model, inputs, change)
    names = [one.name for one in comparison.differences]
    assert names == [*state_names(model), "pooler"]
    assert not comparison.missing
    assert CHANGES[change](comparison.differences[-2].largest), comparison.differences[-2]
    if change in ("the tanh GELU", "pre-LN", "an ignored mask"):
        assert comparison.differences[0].largest == 0  # the embeddings don't know of it


def test_what_if_takes_no_other_word(model: BertModel) -> None:
    with pytest.raises(ValueError, match="change must be one of the tanh GELU, .* got 'nothing'"):
        what_if(model, fixed_inputs(ODD)["short"], "nothing")


def test_a_head_that_differs() -> None:
    bert = random_bert_with("masked-lm")
    expected = trace_cases(bert.model, fixed_inputs(ODD), bert.head)
    got = {**expected, "short/logits": expected["short/logits"] + 1}
    assert diagnose(bert.model, expected, got) == "so it is the head, as what it reads agrees"
    mutant = make(bert.model, "the tanh GELU")
    got = trace_cases(mutant, fixed_inputs(ODD), bert.head)
    assert diagnose(bert.model, expected, got).startswith("as the tanh GELU would; with that, noth")


def test_what_if_needs_real_tokens(model: BertModel) -> None:
    inputs = fixed_inputs(ODD)["short"]
    inputs = inputs._replace(attention_mask=inputs.attention_mask * 0)
    with pytest.raises(ValueError, match="a row has no real token"):
        what_if(model, inputs, "each text alone")


def test_what_if_without_a_pooler() -> None:
    model = BertModel(ODD, has_pooler=False).eval()
    comparison = what_if(model, fixed_inputs(ODD)["padded"], "each text alone")
    assert [one.name for one in comparison.differences] == state_names(model)


def test_nothing_is_left_of_a_bundle_but_its_files(tmp_path: Path) -> None:
    record(random_model(ODD), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bundle.json",
        "tensors.safetensors",
    ]
