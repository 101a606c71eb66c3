from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import ODD, PIECES, random_bert_with, random_model
from torch import nn

from minibert import batches
from minibert.bert import Bert
from minibert.edits import edit, scale_by
from minibert.encoder import FeedForward
from minibert.hooks import capture, state_names
from minibert.loading import pack
from minibert.manifest import fingerprint
from minibert.packing import PackedLinear, is_packed
from minibert.saving import save
from minibert.tokenizer import WordPieceTokenizer


@pytest.fixture
def bert() -> Bert:
    return Bert(ODD, WordPieceTokenizer(PIECES, lowercase=True), random_model(ODD))


def test_packed_gives_the_same_at_every_name(bert: Bert) -> None:
    """Measured: 4.3e-6, as much as two orders of a sum differ by."""
    packed = pack(bert)
    count = sum(isinstance(module, PackedLinear) for module in packed.model.modules())
    assert count == 6 * ODD.num_hidden_layers + 1
    for shape in ((1, 1), (1, 12), (7, 5), (40, 17)):
        ids = torch.randint(len(PIECES), shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode(), capture(bert.model, "encoder.layers.*.attention.*") as ours:
            expected = bert.model(ids)
        with torch.inference_mode(), capture(packed.model, "encoder.layers.*.attention.*") as seen:
            output = packed.model(ids)
        assert list(seen) == list(ours)
        for name, tensor in ours.items():
            assert (seen[name] - tensor).abs().max() < 2e-5, name
        for one, other in zip(output, expected, strict=True):
            assert (one - other).abs().max() < 2e-5


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("watched", ["intermediate", "activation", "output", None])
def test_the_activation_is_in_the_product_unless_somebody_looks(
    bert: Bert, act: str, watched: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(replace(ODD, hidden_act=act))
    packed = pack(replace(bert, config=model.config, model=model)).model
    names = [f"encoder.layers.*.feed_forward.{watched}"] if watched else []
    ids = torch.arange(12)[None]
    with torch.inference_mode(), capture(model, names) as ours:
        expected = model(ids).last_hidden_state
    calls = []
    kind = type(model.encoder.layers[0].feed_forward.activation)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *call: calls.append(1) or forward(*call))
    with torch.inference_mode(), capture(packed, names) as seen:
        given = packed(ids).last_hidden_state
    is_seen = watched in ("intermediate", "activation")
    assert len(calls) == (ODD.num_hidden_layers if is_seen else 0)
    assert (given - expected).abs().max() < 2e-5
    assert list(seen) == list(ours)
    for name, tensor in ours.items():
        assert (seen[name] - tensor).abs().max() < 2e-5, name


class Halved(FeedForward):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) / 2


@pytest.mark.parametrize("is_inherited", [True, False])
def test_a_feed_forward_that_was_changed_is_kept(bert: Bert, is_inherited: bool) -> None:
    part = bert.model.encoder.layers[1].feed_forward
    if is_inherited:
        part.__class__ = Halved
    else:
        part.forward = torch.sin  # type: ignore[method-assign]
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        expected = bert.model(ids).last_hidden_state
        assert (pack(bert).model(ids).last_hidden_state - expected).abs().max() < 2e-5


def test_a_part_that_was_replaced_is_kept(bert: Bert) -> None:
    layers = bert.model.encoder.layers
    layers[0].feed_forward.activation = nn.Tanh()
    layers[1].feed_forward.activation.forward = torch.sin  # type: ignore[method-assign]
    layers[2].feed_forward.intermediate = nn.Sequential(layers[2].feed_forward.intermediate)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        expected = bert.model(ids).last_hidden_state
        assert (pack(bert).model(ids).last_hidden_state - expected).abs().max() < 2e-5


def test_what_it_was_made_from_stays(bert: Bert) -> None:
    before = {name: tensor.clone() for name, tensor in bert.model.state_dict().items()}
    pack(bert)
    after = bert.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(isinstance(module, PackedLinear) for module in bert.model.modules())


def test_bulk_work_and_edits(bert: Bert) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        texts = ["I am the walrus." * (1 + n % 2) for n in range(300)]
        packed = pack(bert)
        expected = bert.vectors(texts, "all", "stack").vectors  # too few tokens to be packed
        assert np.abs(packed.vectors(texts, "all", "stack").vectors - expected).max() < 2e-5
        with edit(packed.model, {"encoder.layers.2": scale_by(2.0)}):
            edited = packed.vectors(texts[:3]).vectors
        assert np.abs(edited - 2 * bert.vectors(texts[:3]).vectors).max() < 4e-5
    finally:
        torch.set_num_threads(threads)
    assert len(state_names(packed.model)) == ODD.num_hidden_layers + 1


@pytest.mark.parametrize("threads", [1, 2])
def test_bulk_work_is_packed_unless_somebody_looks(
    bert: Bert, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Measured: 1.9e-6 in vectors of size 1."""
    texts = [" ".join(["walrus"] * (1 + n % 3)) for n in range(60)]
    expected = bert.vectors(texts).vectors
    pack_model = mock.Mock(side_effect=batches.pack_model)
    monkeypatch.setattr(batches, "pack_model", pack_model)
    monkeypatch.setattr(batches, "PACK_TOKENS", 100)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert np.abs(bert.vectors(texts).vectors - expected).max() < 2e-5
        assert pack_model.call_count == 1
        bert.vectors(texts[:5])  # not worth it
        pack(bert).vectors(texts)  # is packed
        with capture(bert.model, "embeddings"):
            bert.vectors(texts)
        with torch.autocast("cpu"):
            bert.vectors(texts)
        random_bert_with("masked-lm", dtype=torch.float64).vectors(["the"] * 60)
        assert pack_model.call_count == 1
    finally:
        torch.set_num_threads(before)
    assert not is_packed(bert.model)


def test_bfloat16(bert: Bert) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU does not compute in bfloat16")
    half = replace(bert, model=bert.model.to(torch.bfloat16))
    ids = torch.arange(len(PIECES))[None, :17]
    with torch.inference_mode():
        expected = half.model(ids).last_hidden_state.float()
        given = pack(half).model(ids).last_hidden_state
    assert given.dtype == torch.bfloat16
    assert (given.float() - expected).abs().max() < 0.1  # measured: 0.03, a step of bfloat16


def test_it_is_told_apart_from_others(bert: Bert) -> None:
    """A run must not go on with the packed model where the plain one was, or another one."""
    other = Bert(ODD, bert.tokenizer, random_model(ODD))
    with torch.no_grad():
        other.model.encoder.layers[1].attention.key.weight[2, 3] += 1e-3
    prints = {fingerprint(one) for one in (bert, pack(bert), other, pack(other))}
    assert len(prints) == 4
    assert fingerprint(pack(bert)) == fingerprint(pack(bert))


class Doubled(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(inputs)


def test_a_product_that_was_changed_is_not_packed(bert: Bert) -> None:
    """As an adapter would do it; packed, its own part would be lost without a word."""
    feed_forward = bert.model.encoder.layers[2].feed_forward
    plain = feed_forward.output
    inherited = Doubled(plain.in_features, plain.out_features)
    inherited.load_state_dict(plain.state_dict())
    feed_forward.output = inherited
    with pytest.raises(ValueError, match="Doubled"):
        pack(bert)
    feed_forward.output = plain
    plain.forward = lambda inputs: 2 * nn.functional.linear(inputs, plain.weight)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="forward"):
        pack(bert)
    del plain.forward
    plain.bias = None
    with pytest.raises(ValueError, match="bias"):
        pack(bert)
    assert bert.vectors(["walrus"] * 2000).vectors.shape == (10_000, ODD.hidden_size)


def test_what_cannot_be_packed_or_saved(
    bert: Bert, tmp_path_factory: pytest.TempPathFactory
) -> None:
    packed = pack(bert)
    with pytest.raises(ValueError, match="is packed already"):
        pack(packed)
    with pytest.raises(ValueError, match="a packed model cannot be saved"):
        save(packed, tmp_path_factory.mktemp("folder") / "model")
    with capture(bert.model, "embeddings"), pytest.raises(ValueError, match="hooks stand on the"):
        pack(bert)
    with pytest.raises(ValueError, match="this is on cpu in torch.float64, in eval mode"):
        pack(random_bert_with("masked-lm", dtype=torch.float64))
    bert.model.train()
    with pytest.raises(ValueError, match="in training mode"):
        pack(bert)
