import random
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import ODD, PIECES, random_model
from torch.nn import functional as F

from minibert.bert import Bert
from minibert.features import Feature
from minibert.finetuning import best_answer, collate, grouped, loss_of, predict, steps_per_epoch
from minibert.heads import BertWithHead
from minibert.loading import new_head
from minibert.tokenizer import WordPieceTokenizer

CPU = torch.device("cpu")
BERT = Bert(ODD, WordPieceTokenizer(PIECES, lowercase=True), random_model(ODD))
NOWHERE = np.empty(0, np.int32)


def with_head(
    name: str, labels: list[str], problem: str = "single_label_classification"
) -> BertWithHead:
    made = new_head(BERT, name, labels, problem)
    assert made.head is not None
    return BertWithHead(made.model, made.head).eval()


def features(lengths: list[int], kind: str) -> list[Feature]:
    draw = np.random.default_rng(4)
    made = []
    for number, length in enumerate(lengths):
        ids = draw.integers(5, 14, length).astype(np.int32)
        label = {
            "class": np.array(number % 3, np.int64),
            "number": np.array(number / 3, np.float32),
            "tags": np.where(np.arange(length) % 2 == 1, number % 3, -100),
            "span": np.array([number % length, length - 1], np.int64),
        }[kind]
        made.append(Feature(number, ids, length - length // 3, label, NOWHERE))
    return made


@pytest.mark.parametrize(("examples", "size", "parts"), [(700, 8, 1), (65, 32, 3), (5, 8, 2)])
def test_an_epoch_has_every_example_once(examples: int, size: int, parts: int) -> None:
    draw = random.Random(1)
    lengths = [draw.randint(3, 60) for _ in range(examples)]
    steps = steps_per_epoch(examples, size)
    two = list(islice(grouped(lengths, size, parts), 2 * steps))
    for epoch in (two[:steps], two[steps:]):
        assert sorted(n for step in epoch for part in step for n in part) == list(range(examples))
        assert max(sum(map(len, step)) for step in epoch) <= size
    assert two[:steps] != two[steps:] or examples == 5
    for start in (0, 1, steps, steps + 1, 2 * steps - 1):
        rest = list(islice(grouped(lengths, size, parts, 0, start), 2 * steps - start))
        assert rest == two[start:]
    other = list(islice(grouped(lengths, size, parts, seed=1), steps))
    assert other != two[:steps] or examples == 5
    sets = [sorted(n for part in step for n in part) for step in two]
    alone = islice(grouped(lengths, size, 1), 2 * steps)
    assert [sorted(step[0]) for step in alone] == sets  # however many parts


def test_lengths_are_alike_and_in_no_order() -> None:
    draw = random.Random(1)
    lengths = [draw.randint(3, 60) for _ in range(3200)]
    batches = [step[0] for step in islice(grouped(lengths, 32), 100)]
    real = sum(lengths[n] for batch in batches for n in batch)
    padded = sum(32 * max(lengths[n] for n in batch) for batch in batches)
    assert padded / real < 1.03
    means = [sum(lengths[n] for n in batch) / 32 for batch in batches]
    assert abs(float(np.corrcoef(means[1:], means[:-1])[0, 1])) < 0.3


def test_padding() -> None:
    batch = collate(features([5, 3, 4], "tags"), CPU, pad_id=2)
    assert batch.input_ids.shape == batch.labels.shape == (3, 5)
    assert batch.input_ids[1, 3:].tolist() == [2, 2]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(1).tolist() == [5, 3, 4]
    assert batch.labels[1].tolist() == [-100, 1, -100, -100, -100]
    assert collate(features([4, 4], "tags"), CPU).attention_mask is None
    assert collate(features([5, 3], "span"), CPU).labels.tolist() == [[0, 4], [1, 2]]
    assert collate(features([5, 3], "number"), CPU).labels.dtype == torch.float32


@pytest.mark.parametrize("kind", ["class", "number", "tags", "span"])
def test_the_loss_is_a_sum_over_what_counts(kind: str) -> None:
    """Any way to cut a batch into parts gives one sum, and padding adds nothing."""
    model = {
        "class": lambda: with_head("sequence-classification", ["a", "b", "c"]),
        "number": lambda: with_head("sequence-classification", ["n"], "regression"),
        "tags": lambda: with_head("token-classification", ["a", "b", "c"]),
        "span": lambda: with_head("question-answering", []),
    }[kind]()
    rows = features([9, 3, 7, 7, 4], kind)
    whole, count = loss_of(model, collate(rows, CPU))
    assert count == (sum(length // 2 for length in (9, 3, 7, 7, 4)) if kind == "tags" else 5)
    alone = [loss_of(model, collate([row], CPU)) for row in rows]
    assert sum(n for _, n in alone) == count
    assert float(whole.detach()) == pytest.approx(
        sum(float(x.detach()) for x, _ in alone), rel=1e-5
    )


def test_a_window_without_a_label() -> None:
    model = with_head("token-classification", ["a", "b"])
    row = features([4], "tags")[0]
    loss, count = loss_of(model, collate([row._replace(label=np.full(4, -100))], CPU))
    assert (float(loss.detach()), count) == (0.0, 0)
    loss.backward()


def test_a_head_of_pretraining() -> None:
    model = with_head("masked-lm", [])
    with pytest.raises(ValueError, match="the head masked-lm is of pre-training"):
        loss_of(model, collate(features([4], "tags"), CPU))


@pytest.mark.parametrize("kind", ["class", "tags"])
def test_predictions_are_in_order(kind: str) -> None:
    name = "sequence-classification" if kind == "class" else "token-classification"
    model = with_head(name, ["a", "b", "c"])
    rows = features([3, 9, 9, 4, 3], kind)
    for row, logits in zip(rows, predict(model, rows), strict=True):
        batch = collate([row], CPU)
        with torch.inference_mode():
            expected = model(batch.input_ids, batch.token_type_ids)[0]
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=5e-6)
    losses = loss_of(model, collate(rows[:1], CPU))
    assert kind == "tags" or float(losses[0].detach()) == pytest.approx(
        float(F.cross_entropy(torch.from_numpy(predict(model, rows)[0])[None], torch.tensor([0]))),
        rel=1e-5,
    )


def test_the_best_answer_is_the_best_of_all_pairs() -> None:
    draw = np.random.default_rng(7)
    for _ in range(200):
        tokens, longest = int(draw.integers(1, 12)), int(draw.integers(1, 6))
        start, end = draw.normal(size=(2, tokens)).astype(np.float32)
        inside = draw.random(tokens) < 0.7
        pairs = [
            (float(start[i] + end[j]), i, j)
            for i in range(tokens)
            for j in range(i, min(tokens, i + longest))
            if inside[i] and inside[j]
        ]
        found = best_answer(start, end, inside, longest)
        if pairs:
            assert found == max(pairs)
        else:
            assert found[0] == -np.inf


def test_what_padding_is_made_of_does_not_matter() -> None:
    model = with_head("sequence-classification", ["a", "b", "c"])
    rows = features([9, 3], "class")
    one, other = (float(loss_of(model, collate(rows, CPU, pad))[0].detach()) for pad in (0, 7))
    assert one == pytest.approx(other, abs=1e-6)
