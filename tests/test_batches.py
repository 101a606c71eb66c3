import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import ODD, random_model

from minibert import batches
from minibert.batches import fitting_tokens, mixed_states
from minibert.bert import Bert
from minibert.encoding import Encoding
from minibert.model import BertModel
from minibert.vectors import Reading


def encoding(ids: list[int], first: int | None = None) -> Encoding:
    """[CLS] ids [SEP], of which all after `first` tokens are the second text of a pair."""
    types = [0] * len(ids) if first is None else [0] * first + [1] * (len(ids) - first)
    length = len(ids)
    return Encoding(ids, types, [1] * length, [""] * length, [], [None] * length, [0] * length)


def numbers(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 14, (length,), generator=generator).tolist()


@pytest.fixture
def model() -> BertModel:
    return random_model(ODD, torch.float64)  # of 17 positions


def alone(model: BertModel, ids: list[int], types: list[int] | None = None) -> np.ndarray:
    with torch.no_grad():
        segments = None if types is None else torch.tensor([types])
        return model(torch.tensor([ids]), segments).last_hidden_state[0].numpy()


@pytest.mark.parametrize("batch_tokens", [1, 20, 2048])
def test_a_batch_changes_nothing(model: BertModel, batch_tokens: int) -> None:
    rows = [numbers(length, seed) for seed, length in enumerate([5, 3, 17, 5, 1, 5, 3, 16])]
    encodings = [encoding(row) for row in rows]
    results = dict(mixed_states(model, encodings, Reading(), batch_tokens=batch_tokens))
    assert sorted(results) == list(range(8))
    for number, row in enumerate(rows):
        assert np.abs(results[number] - alone(model, row)).max() < 1e-12


def test_no_padding_and_no_mask(model: BertModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    forward = BertModel.forward

    def spy(self, input_ids, token_type_ids=None, attention_mask=None):  # type: ignore[no-untyped-def]
        assert attention_mask is None
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids, token_type_ids)

    monkeypatch.setattr(BertModel, "forward", spy)
    encodings = [encoding(numbers(length)) for length in [3, 9, 3, 3, 9, 5]]
    list(mixed_states(model, encodings, Reading(), batch_tokens=10))
    assert shapes == [(1, 9), (1, 9), (1, 5), (3, 3)]  # longest first


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (3, [3]), (4, [2, 2]), (5, [3, 2]), (6, [3, 3]), (7, [3, 2, 2]), (8, [3, 3, 2])],
)
def test_the_last_batches_of_a_length_are_of_a_size(
    model: BertModel, count: int, sizes: list[int]
) -> None:
    """Four texts, of which three fit: not three and one, which is slow."""
    encodings = [encoding(numbers(5)) for _ in range(count)]
    with mock.patch.object(batches, "_run", side_effect=batches._run) as run:
        list(mixed_states(model, encodings, Reading(), batch_tokens=17))
    assert [len(call.args[1]) for call in run.call_args_list] == sizes


@pytest.mark.parametrize(("width", "tokens"), [(33, 1024), (384, 1024), (768, 512), (1024, 384)])
def test_a_wide_model_has_fewer_tokens_at_once(width: int, tokens: int) -> None:
    """The states of a batch then take the same memory."""
    config = dataclasses.replace(ODD, hidden_size=width, num_attention_heads=1)
    assert fitting_tokens(config) == tokens


def test_what_fits_is_what_runs(model: BertModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_TOKENS", 10)
    with mock.patch.object(batches, "_run", side_effect=batches._run) as run:
        list(mixed_states(model, [encoding(numbers(5)) for _ in range(4)], Reading()))
    assert [len(call.args[1]) for call in run.call_args_list] == [2, 2]


def test_minilm_in_batches_equals_minilm_alone(minilm: Bert) -> None:
    texts = [f"{'walrus ' * n} sings{'!' * m}" for n in range(12) for m in range(4)]
    together = minilm.vectors(texts, unit="sentence", normalize=False).vectors
    errors = [
        np.abs(minilm.vectors(text, unit="sentence", normalize=False).vectors[0] - row).max()
        for text, row in zip(texts, together, strict=True)
    ]
    assert max(errors) < 5e-6, max(errors)


@pytest.mark.parametrize("length", [18, 19, 24, 33, 100])
@pytest.mark.parametrize("stride", [None, 0, 1, 7, 14])
def test_windows(model: BertModel, length: int, stride: int | None) -> None:
    """Each token is read in the window that gives it the most context on its poorer side."""
    row = [2, *numbers(length - 2), 3]
    ((_, states),) = mixed_states(model, [encoding(row)], Reading(), stride)
    assert states.shape == (length, 33)
    step = 15 - (7 if stride is None else stride)
    starts = [*range(1, length - 1 - 15, step), length - 1 - 15]
    windows = {s: alone(model, [2, *row[s : s + 15], 3]) for s in starts}
    for token in range(1, length - 1):
        context = {s: min(token - s, s + 14 - token) for s in starts if s <= token < s + 15}
        best = [s for s, poorer in context.items() if poorer == max(context.values())]
        errors = [np.abs(states[token] - windows[s][1 + token - s]).max() for s in best]
        assert min(errors) < 1e-12, (token, best)
    assert np.abs(states[0] - windows[1][0]).max() < 1e-12  # [CLS] of the first window
    assert np.abs(states[-1] - windows[starts[-1]][-1]).max() < 1e-12  # [SEP] of the last


def test_windows_of_a_pair_have_the_first_text_whole(model: BertModel) -> None:
    ids = [2, 5, 6, 3, *numbers(30), 3]
    pair = encoding(ids, first=4)
    ((_, states),) = mixed_states(model, [pair], Reading(), stride=0)
    types = [0] * 4 + [1] * 13
    first = alone(model, [*ids[:16], 3], types)
    assert np.abs(states[:15] - first[:15]).max() < 1e-12
    last = alone(model, [*ids[:4], *ids[-13:]], types)
    assert np.abs(states[-1] - last[-1]).max() < 1e-12
    assert states.shape == (35, 33)


def test_a_first_text_that_leaves_no_room(model: BertModel) -> None:
    pair = encoding([2, *numbers(16), 3, 5, 3], first=18)
    with pytest.raises(ValueError, match="text 0 has 20 tokens, more than the 17 positions"):
        list(mixed_states(model, [pair], Reading()))


def test_the_pooler_of_a_long_text_is_of_its_first_window(model: BertModel) -> None:
    row = [2, *numbers(40), 3]
    reading = Reading(unit="sentence", pooling="pooler")
    ((_, states),) = mixed_states(model, [encoding(row)], reading)
    with torch.no_grad():
        pooled = model(torch.tensor([[*row[:16], 3]])).pooler_output
    assert np.abs(states - pooled.numpy()).max() < 1e-12
    model.pooler = None
    with pytest.raises(ValueError, match="this model has no pooler"):
        list(mixed_states(model, [encoding(row)], reading))


def test_ten_thousand_tokens_in_one_text(minilm: Bert) -> None:
    text = "walrus " * 5_000
    vectors = minilm.vectors(text, special_tokens=False)
    assert vectors.vectors.shape == (10_000, 384)
    assert np.isfinite(vectors.vectors).all()


def test_training_mode_is_refused(model: BertModel) -> None:
    with pytest.raises(ValueError, match="training mode"):
        list(mixed_states(model.train(), [encoding([1])], Reading()))


def test_too_long_can_be_an_error_or_a_warning(minilm: Bert) -> None:
    texts = ["a", "b " * 600, "c " * 700]
    with pytest.raises(ValueError, match="2 of 3 texts have more than the 512 .* 1, with 602"):
        minilm.vectors(texts, long="error")
    with pytest.warns(UserWarning, match="2 of 3 texts have more .* they were cut"):
        vectors = minilm.vectors(texts, long="truncate")
    assert [len(part.tokens) for part in vectors] == [3, 512, 512]
    assert [len(part.tokens) for part in minilm.vectors(texts)] == [3, 602, 702]
