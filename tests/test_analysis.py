import math
from pathlib import Path

import pytest
import torch
from conftest import ODD, PIECES, random_bert_with, random_model
from test_hooks import count_hooks
from torch import Tensor

from minibert.analysis import (
    ablate_each_head,
    anisotropy,
    attention_distance,
    attention_entropy,
    attention_rollout,
    linear_cka,
    patch_grid,
    read_out,
    word_attention,
)
from minibert.bert import Bert
from minibert.saving import save

TEXTS = [
    "The bank raised the interest rate, and she sat on the bank of the river.",
    "I ate an apple while the company released a phone.",
    "A walrus is a large marine mammal with long tusks, found about the North Pole.",
    "Nothing in the report explained why the bridge had been closed for so long.",
    "He plays the violin badly, but with great enthusiasm.",
]


def test_each_head_taken_out() -> None:
    model = random_model(ODD, torch.float64)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        # A head whose part of W_O is zero has no effect; the others have.
        model.encoder.layers[2].attention.output.weight[:, 11:22] = 0
    effects = ablate_each_head(model, lambda: model(ids).last_hidden_state.square().sum())
    assert effects.shape == (3, 3)
    assert effects[2, 1] == 0
    assert (effects != 0).sum() == 8
    with torch.no_grad():
        before = model(ids).last_hidden_state.square().sum()
        model.encoder.layers[0].attention.output.weight[:, :11] = 0
        after = model(ids).last_hidden_state.square().sum()
    assert effects[0, 0] == pytest.approx((after - before).item())
    assert count_hooks(model) == 0


def test_patching_grid() -> None:
    model = random_model(ODD, torch.float64)
    one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 9, 4]])
    grid = patch_grid(model, lambda: model(one).last_hidden_state[0, 3, 0], lambda: model(other))
    assert grid.shape == (4, 4)
    with torch.no_grad():
        plain, patched = (model(ids).last_hidden_state[0, 3, 0] for ids in (one, other))
    # State 0 differs at token 2 alone; the last state is read at token 3 alone.
    assert (grid[0, [0, 1, 3]] - plain).abs().max() < 1e-12
    assert grid[0, 2] == pytest.approx(patched.item())
    assert (grid[3, :3] - plain).abs().max() < 1e-12
    assert grid[3, 3] == pytest.approx(patched.item())
    shorter = pytest.raises(ValueError, match="the edit of embeddings: the stored tensor has shape")
    with shorter:
        patch_grid(model, lambda: model(one).pooler_output.sum(), lambda: model(other[:, :3]))


def test_entropy_and_distance() -> None:
    attentions = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0, 0, 0.5]])
    attentions = torch.cat([attentions, torch.tensor([[0, 0, 1.0, 0]])])
    assert attention_entropy(attentions).tolist() == pytest.approx([0, math.log(4), math.log(2), 0])
    assert attention_distance(attentions).tolist() == [0, (1 + 0 + 1 + 2) / 4, 1.5, 1]


def test_attention_of_words() -> None:
    """[CLS] wa ##l b [SEP]: to "wa ##l" is summed, from it averaged."""
    attentions = torch.tensor(
        [
            [0.2, 0.2, 0.2, 0.2, 0.2],
            [0.1, 0.2, 0.3, 0.4, 0.0],
            [0.3, 0.0, 0.1, 0.0, 0.6],
            [0.0, 0.5, 0.5, 0.0, 0.0],
            [1.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    expected = torch.tensor(
        [
            [0.2, 0.4, 0.2, 0.2],
            [0.2, 0.3, 0.2, 0.3],
            [0.0, 1.0, 0.0, 0.0],
            [1.0, 0.0, 0.0, 0.0],
        ]
    )
    words = word_attention(attentions, [None, 0, 0, 1, None])
    assert (words - expected).abs().max() < 1e-6
    batch = word_attention(attentions.expand(2, 3, 5, 5), [None, 0, 0, 1, None])
    assert batch.shape == (2, 3, 4, 4)
    # In a pair [CLS] a [SEP] b [SEP] both words have number 0, and are two.
    assert word_attention(attentions, [None, 0, None, 0, None]).shape == (5, 5)
    with pytest.raises(ValueError, match="4 word_ids for 5 tokens"):
        word_attention(attentions, [None, 0, 1, None])


def test_rollout() -> None:
    swap = torch.tensor([[0.0, 1], [1, 0]])
    attentions = torch.stack([torch.stack([swap, swap]), torch.stack([torch.eye(2), swap])])
    rollout = attention_rollout(attentions)
    # Layer 0 mixes half and half; layer 1 keeps 3/4 and takes 1/4, of what is mixed already.
    assert torch.equal(rollout, torch.full((2, 2, 2), 0.5))
    rollout = attention_rollout(attentions[1:])
    assert torch.equal(rollout[0], torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    # Layer 0: both read token 0. Layer 1: both read token 1, which by then is half token 0.
    first, second = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[0.0, 1], [0, 1]])
    rollout = attention_rollout(torch.stack([first, second])[:, None])
    assert torch.equal(rollout[1], torch.tensor([[0.75, 0.25], [0.5, 0.5]]))


def test_linear_cka() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    assert linear_cka(vectors, vectors @ rotation * 7 + 3).item() == pytest.approx(1)
    x = torch.tensor([[1.0], [-1], [0], [0]])
    y = torch.tensor([[0.0], [0], [1], [-1]])
    assert linear_cka(x, y) == 0  # no linear relation
    # Of two orthogonal directions of equal length one is common: 1 / sqrt(1 * 2).
    assert linear_cka(torch.cat([x, y], dim=1), x).item() == pytest.approx(0.5**0.5)
    with pytest.raises(ValueError, match="a row for each token"):
        linear_cka(x, y[:3])


def test_anisotropy() -> None:
    three = torch.tensor([[1.0, 0], [0, 2], [3, 3]])  # cosines 0, sqrt(1/2), sqrt(1/2)
    assert anisotropy(three).item() == pytest.approx(2 * 0.5**0.5 / 3)
    assert anisotropy(torch.ones(2, 5, 4)).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="two vectors or more, got 1"):
        anisotropy(three[:1])


def test_what_a_mask_would_be_after_each_layer(tmp_path: Path) -> None:
    """After the last it is what it is; before, what the head of transformers makes of the state."""
    transformers = pytest.importorskip("transformers")
    bert = random_bert_with("pretraining")
    save(bert, tmp_path / "model")
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "model").eval()
    token = bert.states("the [MASK] am").hidden_states[:, 2]
    rows = read_out(token, bert.head, len(PIECES))
    assert rows.shape == (4, len(PIECES))
    with torch.no_grad():
        expected = theirs.cls.predictions(token)
    assert rows.tolist() == expected.argsort(dim=-1, descending=True).tolist()
    assert len({tuple(row) for row in rows.tolist()}) == 4
    candidates = bert.fill("the [MASK] am", top_k=5)[0].candidates
    assert read_out(token, bert.head, 5)[-1].tolist() == [one.ids[0] for one in candidates]


def test_what_cannot_be_read_out() -> None:
    bert = random_bert_with("masked-lm")
    states = bert.states("the [MASK] am").hidden_states
    for top_k in (0, 15):
        with pytest.raises(ValueError, match=f"top_k must be from 1 to 14, got {top_k}"):
            read_out(states[:, 2], bert.head, top_k)
    with pytest.raises(ValueError, match=r"states of one token, got \(4, 5, 33\)"):
        read_out(states, bert.head, 1)
    with pytest.raises(ValueError, match="this takes the head masked-lm, got none"):
        read_out(states[:, 2], None, 1)


def test_minilm_has_heads_for_neighbours(minilm: Bert) -> None:
    """Clark et al. 2019, section 3.1: such heads exist, above all in the lower layers."""
    for offset in (-1, 1):  # the token before, the token after
        shares = []
        for states in minilm.states(TEXTS, attentions=True):
            assert states.attentions is not None
            shares.append(states.attentions.diagonal(offset, dim1=2, dim2=3).mean(dim=-1))
        best = torch.stack(shares).mean(dim=0).amax(dim=1)  # of each layer
        assert best[:2].max() > 0.5
        assert best[3:].max() < best[:2].max() / 2


def test_minilm_has_broad_and_focused_heads(minilm: Bert) -> None:
    """Clark et al. 2019, section 3.3: entropies from near 0 to near that of uniform attention."""
    states = minilm.states(TEXTS[2], attentions=True)
    assert states.attentions is not None
    share = attention_entropy(states.attentions).mean(dim=-1) / math.log(len(states.tokens))
    assert share.max() > 0.8
    assert share.min() < 0.4


def test_minilm_mixes_more_in_every_layer(minilm: Bert) -> None:
    """Abnar and Zuidema 2020: identities of tokens become less separable in higher layers."""
    states = minilm.states(TEXTS[2], attentions=True)
    assert states.attentions is not None
    own_share = attention_rollout(states.attentions).diagonal(dim1=1, dim2=2).mean(dim=1)
    assert (own_share.diff() < 0).all()


def test_minilm_is_anisotropic_above_the_bottom(minilm: Bert) -> None:
    """Ethayarajh 2019: in all layers above the input, random tokens have a positive cosine."""
    tokens = torch.cat([states.hidden_states[:, 1:-1] for states in minilm.states(TEXTS)], dim=1)
    means = anisotropy(tokens)
    assert (means[1:] > 0.05).all()


def test_minilm_layers_near_each_other_are_alike(minilm: Bert) -> None:
    """Kornblith et al. 2019: the nearer two layers, the more alike they are."""
    tokens = torch.cat([states.hidden_states[:, 1:-1] for states in minilm.states(TEXTS)], dim=1)
    similarity = [linear_cka(tokens[3], tokens[layer]) for layer in (3, 4, 6)]
    assert similarity[0] > similarity[1] > similarity[2]


def test_minilm_does_without_most_heads(minilm: Bert) -> None:
    """Michel et al. 2019: most heads can be taken out alone without a great effect."""
    ids = torch.tensor([minilm.tokenizer.encode(TEXTS[0]).input_ids])
    with torch.no_grad():
        whole = minilm.model(ids).last_hidden_state.mean(dim=1)

    def distance() -> Tensor:
        return (
            1
            - torch.cosine_similarity(
                minilm.model(ids).last_hidden_state.mean(dim=1), whole
            ).squeeze()
        )

    effects = ablate_each_head(minilm.model, distance)
    assert effects.median() < 0.2 * effects.max()
