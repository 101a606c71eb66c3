import json
from pathlib import Path

import pytest
import torch
from conftest import ODD, random_bert_with, random_model
from safetensors.torch import load_file

from minibert.bundle import (
    LOGITS,
    TENSORS,
    Inputs,
    compared_names,
    fixed_inputs,
    read_bundle,
    read_dump,
    record,
    trace,
    trace_cases,
)
from minibert.config import BertConfig, CheckpointError
from minibert.head_config import HEADS
from minibert.heads import BertWithHead
from minibert.hooks import capture, state_names
from minibert.model import BertModel
from minibert.names import in_any_layer


def test_the_cases_of_bert_base() -> None:
    cases = fixed_inputs(BertConfig())
    shapes = {case: tuple(inputs.input_ids.shape) for case, inputs in cases.items()}
    assert shapes == {
        "single": (1, 1),
        "short": (1, 8),
        "pair": (1, 16),
        "padded": (3, 12),
        "long": (1, 128),
        "longest": (1, 512),
    }
    assert cases["pair"].token_type_ids.tolist() == [[0] * 8 + [1] * 8]
    assert cases["padded"].attention_mask.tolist() == [
        [1] * 12,
        [1] * 6 + [0] * 6,
        [0] * 4 + [1, 1, 0, 1, 1, 1, 1, 1],
    ]
    assert len(set(cases["longest"].input_ids[0].tolist())) == 512
    assert cases["short"].input_ids[0, :3].tolist() == [101, 8020, 15939]


@pytest.mark.parametrize("most", [1, 2, 7])
def test_the_cases_of_tiny_models(most: int) -> None:
    config = BertConfig(vocab_size=3, max_position_embeddings=most, type_vocab_size=1)
    for inputs in fixed_inputs(config).values():
        assert inputs.input_ids.shape[1] <= most
        assert 0 <= inputs.input_ids.min() <= inputs.input_ids.max() < 3
        assert (inputs.token_type_ids == 0).all()
    assert fixed_inputs(config)["padded"].attention_mask.any(dim=1).all()  # no row of padding only


def test_every_named_tensor_in_data_flow() -> None:
    model = random_model(ODD)
    inputs = fixed_inputs(ODD)["padded"]
    names = compared_names(model)
    assert len(names) == 5 + 3 * 13 + 2
    assert set(state_names(model)) <= set(names)
    assert compared_names(BertModel(ODD, has_pooler=False)) == names[:-2]
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
        if name in names
    ]
    traced = trace(model, inputs, names)
    for handle in handles:
        handle.remove()
    assert order == names  # the order in which a pass computes them
    sizes = {"B": 3, "T": 12, "H": 33, "A": 3, "D": 11, "I": 50}
    for name in names:
        letters = TENSORS[in_any_layer(name)].shape
        assert tuple(traced[name].shape) == tuple(sizes[letter] for letter in letters.split())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bundle_is_what_the_model_computes(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model(ODD, dtype)
    record(model, tmp_path / "new" / "bundle")
    bundle = read_bundle(tmp_path / "new" / "bundle")
    expected = trace_cases(model, fixed_inputs(ODD))
    assert list(bundle) == list(expected)
    for key, tensor in bundle.items():
        assert torch.equal(tensor, expected[key])
        assert tensor.dtype == (dtype if tensor.is_floating_point() else torch.int64)
    ids = bundle["padded/input_ids"]
    mask, segments = bundle["padded/attention_mask"], bundle["padded/token_type_ids"]
    with torch.no_grad(), capture(model, "encoder.layers.1.attention.scores") as seen:
        output = model(ids, segments, mask)
    scores = bundle["padded/encoder.layers.1.attention.scores"]
    # The layer before attended by the fused kernel here: equal to rounding.
    torch.testing.assert_close(
        scores, seen["encoder.layers.1.attention.scores"], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        bundle["padded/encoder.layers.2"], output.last_hidden_state, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", ["masked-lm", "next-sentence", "pretraining"])
def test_a_bundle_with_a_head(name: str, tmp_path: Path) -> None:
    bert = random_bert_with(name, dtype=torch.float64)
    assert bert.head is not None
    record(bert.model, tmp_path, bert.head)
    bundle = read_bundle(tmp_path)
    about = json.loads((tmp_path / "bundle.json").read_text())
    assert about["head"]["architectures"] == [HEADS[name]]
    given = BertWithHead(bert.model, bert.head)(*(bundle[f"padded/{n}"] for n in Inputs._fields))
    logits = given if isinstance(given, tuple) else (given,)
    names = LOGITS[1:] if name == "pretraining" else LOGITS[:1]
    assert about["tensors"] == [*compared_names(bert.model), *names]
    for key, expected in zip(names, logits, strict=True):
        torch.testing.assert_close(bundle[f"padded/{key}"], expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="in training mode"):
        record(bert.model, tmp_path, bert.head.train())


def test_a_bundle_describes_itself(tmp_path: Path) -> None:
    record(random_model(ODD), tmp_path)
    about = json.loads((tmp_path / "bundle.json").read_text())
    assert about["dtype"] == "float32"
    assert about["config"]["hidden_size"] == 33
    assert about["cases"]["padded"] == {"B": 3, "T": 12}
    assert about["tensors"] == compared_names(random_model(ODD))
    assert about["shapes"]["encoder.layers.i.attention.scores"] == "B A T T"
    assert (tmp_path / "tensors.safetensors").stat().st_mode & 0o044  # not for its owner alone


def test_no_bundle_of_a_model_in_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model is in training mode, .* call eval"):
        record(random_model(ODD).train(), tmp_path)


def test_broken_bundles(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="bundle.json is not of a bundle .* No such file"):
        read_bundle(tmp_path)
    with pytest.raises(CheckpointError, match="dump is not a safetensors file: No such file"):
        read_dump(tmp_path / "dump")
    record(random_model(ODD), tmp_path)
    (tmp_path / "tensors.safetensors").write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match="tensors.safetensors is not a safetensors file"):
        read_bundle(tmp_path)
    start = '{"format": "minibert bundle 1"'
    for text in ("", "[]", f'{start}, "cases": {{}}}}', f'{start}, "cases": 1, "tensors": []}}'):
        (tmp_path / "bundle.json").write_text(text)
        with pytest.raises(CheckpointError, match="is not of a bundle that record wrote"):
            read_bundle(tmp_path)


def test_a_bundle_of_another_format(tmp_path: Path) -> None:
    record(random_model(ODD), tmp_path)
    path = tmp_path / "bundle.json"
    path.write_text(path.read_text().replace("bundle 1", "bundle 2"))
    with pytest.raises(
        CheckpointError, match="format is 'minibert bundle 2', expected 'minibert b"
    ):
        read_bundle(tmp_path)


def test_a_bundle_of_two_halves(tmp_path: Path) -> None:
    record(random_model(ODD), tmp_path / "one")
    without_pooler = BertModel(ODD, has_pooler=False).eval()
    record(without_pooler, tmp_path / "other")
    (tmp_path / "other" / "tensors.safetensors").rename(tmp_path / "one" / "tensors.safetensors")
    with pytest.raises(CheckpointError, match="bundle.json and tensors.safetensors are of two"):
        read_bundle(tmp_path / "one")
    assert "short/pooler" not in load_file(tmp_path / "one" / "tensors.safetensors")
