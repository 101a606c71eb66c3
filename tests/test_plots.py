import json

import numpy as np
import pytest
import torch
from conftest import ODD, PIECES, random_model

from minibert.bert import Bert
from minibert.plots import (
    Accuracy,
    plot_ablation,
    plot_attention,
    plot_layers,
    plot_patching,
    plot_senses,
    plot_similarity,
    plot_training,
    read_accuracies,
)
from minibert.tokenizer import WordPieceTokenizer

pytest.importorskip("matplotlib", reason="needs matplotlib (extra plot)")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

TOKENS = ["[CLS]", "$x", "_{y}$", "[SEP]"]


def bert() -> Bert:
    return Bert(ODD, WordPieceTokenizer(PIECES, lowercase=True), random_model(ODD))


def labels(axes: Axes, which: str) -> list[str]:
    return [label.get_text() for label in getattr(axes, f"get_{which}ticklabels")()]


def drawn(axes: Axes) -> np.ndarray:
    """The numbers that a matrix shows."""
    return np.asarray(axes.images[0].get_array())


def draw(axes: Axes) -> None:
    """As for a file: a formula that is none would raise here."""
    axes.get_figure(root=True).savefig("/dev/null", format="png")  # type: ignore[union-attr]


def test_attention() -> None:
    attention = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) / 4
    axes = plot_attention(attention, TOKENS, "$x and _{y}$")
    assert np.array_equal(drawn(axes), attention.numpy())
    assert labels(axes, "x") == labels(axes, "y") == TOKENS  # as they are, though "$" in them
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("token that is read", "token that reads")
    assert axes.images[0].get_clim() == (0, attention.max())
    draw(axes)
    with pytest.raises(ValueError, match="3 tokens for attention of shape"):
        plot_attention(attention, TOKENS[:3])


def test_similarity() -> None:
    comparison = bert().compare("walrus", ["a walrus walrus", "the walrus"])
    axes = plot_similarity(comparison, "walrus")
    assert len(axes.lines) == 3
    assert np.array_equal(axes.lines[1].get_ydata(), comparison.similarity[:, 0, 2])
    assert labels(axes, "x") == ["static", "1", "2", "3"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [  # type: ignore[union-attr]
        "1 and 2",
        "1 and 3",
        "2 and 3",
    ]
    draw(axes)
    with pytest.raises(ValueError, match="one place only"):
        plot_similarity(bert().compare("walrus", ["a walrus"]))


def test_many_lines_differ() -> None:
    comparison = bert().compare("a", ["a a a a a a"])
    axes = plot_similarity(comparison)
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == len(axes.lines) == 15


PRINTED = """minilm, 1280 pairs, 50.0% in the same sense
state 0                          53.7%  (50.9% to 56.4%)
state 1                          55.0%  (52.3% to 57.7%)
sum of all layers                60.0%  (57.3% to 62.7%)
"""


def test_senses() -> None:
    accuracies = read_accuracies(PRINTED)
    assert list(accuracies) == ["state 0", "state 1", "sum of all layers"]
    assert accuracies["state 1"] == Accuracy(0.55, 0.523, 0.577)
    axes = plot_senses(accuracies)
    assert list(axes.lines[0].get_ydata()) == pytest.approx([53.7, 55.0])
    assert labels(axes, "x") == ["0", "1", "sum of all layers"]
    assert "%" in axes.get_ylabel()
    ends = np.array(axes.collections[0].get_segments())[:, :, 1]
    assert ends == pytest.approx(np.array([[50.9, 56.4], [52.3, 57.7], [57.3, 62.7]]))
    draw(axes)
    with pytest.raises(ValueError, match=r"no row such as 'state 0 .* of scripts/senses.py"):
        read_accuracies("sum of all layers                60.0%  (57.3% to 62.7%)")


def test_layers() -> None:
    states = bert().states("I am the walrus.")
    axes = plot_layers(states)
    vectors = states.hidden_states
    expected = torch.cosine_similarity(vectors[1], vectors[3], dim=-1).mean()
    assert drawn(axes)[1, 3] == pytest.approx(expected.item(), abs=1e-6)
    assert np.diag(drawn(axes)) == pytest.approx(np.ones(4), abs=1e-6)
    draw(axes)


def test_ablation_and_patching() -> None:
    effects = torch.tensor([[0.5, -1.0, 0.0], [0.1, 0.2, 0.3]])
    axes = plot_ablation(effects, "nats")
    assert axes.images[0].get_clim() == (-1, 1)  # no effect has the colour between
    assert (labels(axes, "x"), labels(axes, "y")) == (["1", "2", "3"], ["1", "2"])
    assert axes.figure.axes[1].get_ylabel() == "change of the output (nats)"
    plot_ablation(torch.zeros(2, 3))  # and nothing to divide by
    grid = torch.rand(5, 4)
    axes = plot_patching(grid, TOKENS, "nats")
    assert (labels(axes, "x"), labels(axes, "y")) == (TOKENS, ["0", "1", "2", "3", "4"])
    assert np.array_equal(drawn(axes), grid.numpy())
    assert axes.figure.axes[1].get_ylabel() == "output (nats)"
    draw(axes)
    with pytest.raises(ValueError, match="3 tokens for a grid of shape"):
        plot_patching(grid, TOKENS[:3])


def test_training() -> None:
    log = [{"step": n, "loss": 3 / n, "learning_rate": 1e-4} for n in (10, 20, 30)]
    log.insert(2, {"step": 20, "evaluation": {"accuracy": 0.5, "f1": 0.4}})
    axes = plot_training(map(json.dumps, log))
    assert axes.lines[0].get_xydata() == pytest.approx(np.array([[n, 3 / n] for n in (10, 20, 30)]))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss (nats)")
    right = axes.figure.axes[1]
    assert [(line.get_label(), *line.get_ydata()) for line in right.lines] == [
        ("accuracy", 0.5),
        ("f1", 0.4),
    ]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["loss", "accuracy", "f1"]
    draw(axes)
    assert len(plot_training(['{"step": 1, "loss": 2}']).figure.axes) == 1


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["{}"], 'line 1 of the log: expected {"step": 1'),
        (['{"step": 1, "loss": 2}', "loss 3"], "line 2 of the log: .* got 'loss 3'"),
        (['{"step": 1, "loss": null}'], "line 1 of the log"),
        (['{"step": 1, "evaluation": 3}'], "line 1 of the log"),
        (["[]"], "line 1 of the log"),
        ([], "no line of the log has a loss"),
        (['{"step": 1, "evaluation": {"f1": 3}}'], "no line of the log has a loss"),
    ],
)
def test_logs_that_are_none(lines: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        plot_training(lines)


def test_letters_are_large_and_axes_may_be_given() -> None:
    figure = Figure(figsize=(8, 6))
    axes = figure.subplots(1, 2)
    assert plot_attention(torch.rand(4, 4), TOKENS, axes=axes[0]) is axes[0]
    assert plot_ablation(torch.rand(2, 3), axes=axes[1]) is axes[1]
    for each in axes:
        assert min(each.xaxis.label.get_size(), each.yaxis.label.get_size()) >= 14
        assert min(label.get_size() for label in each.get_xticklabels()) >= 13
