from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from conftest import ODD, PIECES, random_model

from minibert.bert import Bert, States
from minibert.tokenizer import WordPieceTokenizer

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager
except ImportError:
    pytestmark = pytest.mark.skip(reason="needs matplotlib (extra plot)")  # one by one
else:
    from minibert.plots import (
        Accuracy,
        isolate,
        plot_ablation,
        plot_attention,
        plot_layers,
        plot_patching,
        plot_senses,
        plot_similarity,
        plot_training,
        read_accuracies,
    )

TOKENS = ["[CLS]", "$x", r"$\frac{$", "[SEP]"]


def bert() -> Bert:
    return Bert(ODD, WordPieceTokenizer(PIECES, lowercase=True), random_model(ODD))


def labels(axes: Axes, which: str) -> list[str]:
    return [label.get_text() for label in getattr(axes, f"get_{which}ticklabels")()]


def drawn(axes: Axes) -> np.ndarray:
    """The numbers that a matrix shows."""
    return np.asarray(axes.images[0].get_array())


def names(axes: Axes) -> tuple[str, str, str]:
    """What stands at the axes, and above them."""
    return axes.get_xlabel(), axes.get_ylabel(), axes.get_title()


def draw(axes: Axes) -> None:
    """As for a file: a formula that is none would raise here."""
    axes.get_figure(root=True).savefig(BytesIO(), format="png")  # type: ignore[union-attr]


def letters(axes: Axes) -> float:
    """The smallest in points, once the figure is as large as goes on a slide."""
    width, height = axes.get_figure(root=True).get_size_inches()  # type: ignore[union-attr]
    texts = [axes.title, axes.xaxis.label, axes.yaxis.label]
    texts += [*axes.get_xticklabels(), *axes.get_yticklabels()]
    size: float = min(text.get_size() for text in texts)
    return size * min(13.33 / width, 7.5 / height)


def test_attention() -> None:
    attention = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) / 4
    axes = plot_attention(attention, TOKENS, "$x and _{y}$")
    assert np.array_equal(drawn(axes), attention.numpy())
    assert labels(axes, "x") == labels(axes, "y") == TOKENS  # as they are, though "$" in them
    assert names(axes) == ("token that is read", "token that reads", "$x and _{y}$")
    assert axes.images[0].get_clim() == (0, attention.max())
    assert axes.images[0].get_cmap().name == "Blues"
    assert axes.figure.axes[1].get_ylabel() == "attention probability"
    draw(axes)
    with pytest.raises(ValueError, match="3 tokens for attention of shape"):
        plot_attention(attention, TOKENS[:3])


@pytest.mark.parametrize("count", [4, 17, 40, 128])
def test_every_matrix_can_be_read_on_a_slide(count: int) -> None:
    tokens = [f"token {n}" for n in range(count - 1)] + ["a word of very many letters"]
    for axes in (
        plot_attention(torch.rand(count, count), tokens, "a title"),
        plot_patching(torch.rand(count, count), tokens),
        plot_ablation(torch.rand(count, count)),
        plot_layers(States(bert().tokenizer.encode("a"), torch.rand(count, 3, 5), None)),
    ):
        draw(axes)
        assert letters(axes) >= 10
    axes = plot_attention(torch.rand(count, count), tokens)
    step = 1 + count // 29
    told = [*tokens[:-1], "a word of very many…"][::step]
    assert labels(axes, "x") == labels(axes, "y") == told
    assert list(axes.get_xticks()) == list(range(0, count, step))
    assert axes.get_aspect() == 1


@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (128, 128), (13, 60), (25, 8), (6, 128)])
def test_labels_do_not_touch(rows: int, columns: int) -> None:
    axes = plot_patching(torch.rand(rows, columns), [f"token{n}" for n in range(columns)])
    draw(axes)
    for which, top, bottom in (("y", "y1", "y0"), ("x", "x0", "x1")):
        boxes = [label.get_window_extent() for label in getattr(axes, f"get_{which}ticklabels")()]
        for one, other in zip(boxes, boxes[1:], strict=False):
            gap = getattr(one, bottom) - getattr(other, top)
            assert (gap if which == "y" else -gap) >= -1  # pixels


@pytest.mark.parametrize("count", [0, 129, 512])
def test_what_nobody_could_read_is_refused(count: int) -> None:
    says = f"{count} x {count} cells; 1 to 128 a side can be read: cut the text"
    with pytest.raises(ValueError, match=says):
        plot_attention(torch.rand(count, count), ["a"] * count)
    with pytest.raises(ValueError, match=f"3 x {count} cells; 1 to 128 a side"):
        plot_patching(torch.rand(3, count), ["a"] * count)
    with pytest.raises(ValueError, match="200 x 3 cells; 1 to 128 a side"):
        plot_ablation(torch.rand(200, 3))
    with pytest.raises(ValueError, match="0 x 3 cells; 1 to 128 a side"):
        plot_ablation(torch.rand(0, 3))


def test_numbers_without_a_colour_are_refused() -> None:
    bad = torch.tensor([[1.0, float("nan")], [0.0, 2.0]])
    no_token = States(bert().tokenizer.encode("a"), torch.rand(4, 0, 5), None)
    for plot in (
        lambda: plot_attention(bad, ["a", "b"]),
        lambda: plot_ablation(bad),
        lambda: plot_patching(bad * float("inf"), ["a", "b"]),
        lambda: plot_layers(no_token),
    ):
        with pytest.raises(ValueError, match="some of the numbers are not finite"):
            plot()
    with pytest.raises(ValueError, match="there is no accuracy to draw"):
        plot_senses({})


def test_long_titles_wrap() -> None:
    for title in ("a title of many words, " * 9, r"$\frac{ is no formula$"):
        axes = plot_attention(torch.rand(3, 3), ["a"] * 3, title)
        draw(axes)
        whole, above = axes.get_figure(root=True).bbox, axes.title.get_window_extent()  # type: ignore[union-attr]
        assert above.x1 <= whole.x1
        assert above.y1 <= whole.y1


def test_what_is_written_from_the_right_stays_by_itself() -> None:
    for text in ("", "an apple, 中文", "a שלום"):
        assert isolate(text) == text
    for text in ("1 שלום, a", "سلام"):
        assert isolate(text) == f"\u200e\u202b{text}\u202c\u200e"
    texts = ["a", "שלום a"]
    axes = plot_similarity(bert().compare("a", texts), "a", texts=texts)
    assert axes.get_title().split("\n")[1:] == ["1  [a]", f"2  {isolate('שלום [a]')}"]
    draw(axes)


def test_letters_that_the_font_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is missing is a warning, and here an error; then a font that has it is there."""
    there = {font.name for font in fontManager.ttflist}
    assert "STIXGeneral" in there  # comes with matplotlib
    tokens = ["𝒜", "a"]  # STIXGeneral has it, DejaVu Sans has not
    with pytest.raises(UserWarning, match="Glyph 119964 .* missing from font"):
        draw(plot_attention(torch.rand(2, 2), tokens))
    monkeypatch.setattr("minibert.plots._FALLBACKS", ("No Such Font", "STIXGeneral"))
    draw(plot_attention(torch.rand(2, 2), tokens, "𝒜"))


def test_similarity() -> None:
    texts = ["a walrus walrus", "the walrus"]
    comparison = bert().compare("walrus", texts)
    axes = plot_similarity(comparison, "walrus", texts=texts)
    assert names(axes)[:2] == ("layer", "cosine")
    assert axes.get_title().split("\n") == [
        "“walrus” in 3 places",
        "1  a [walrus] walrus",
        "2  a walrus [walrus]",
        "3  the [walrus]",
    ]
    assert plot_similarity(comparison, "walrus").get_title() == "“walrus” in 3 places"
    assert len(axes.lines) == 3
    assert np.array_equal(axes.lines[1].get_ydata(), comparison.similarity[:, 0, 2])
    assert labels(axes, "x") == ["static", "1", "2", "3"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [  # type: ignore[union-attr]
        "1 and 2",
        "1 and 3",
        "2 and 3",
    ]
    draw(axes)
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1  # over no line
    assert letters(axes) >= 10
    with pytest.raises(ValueError, match="stands in 1 places, and 2 to 8 can be drawn apart"):
        plot_similarity(bert().compare("walrus", ["a walrus"]))


def test_many_lines_differ() -> None:
    axes = plot_similarity(bert().compare("a", ["a a a a a a a a"]))
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == len(axes.lines) == 28
    draw(axes)
    legend = axes.get_legend()
    assert legend is not None
    whole, drawn = axes.get_figure(root=True).bbox, legend.get_window_extent()  # type: ignore[union-attr]
    assert drawn.x0 >= axes.get_window_extent().x1
    assert drawn.y0 >= whole.y0
    with pytest.raises(ValueError, match="stands in 9 places, and 2 to 8 can be drawn apart"):
        plot_similarity(bert().compare("a", ["a a a a a a a a a"]))


def test_colours_are_okabe_and_itos() -> None:
    """All kinds of colour-blindness keep them apart."""
    axes = plot_similarity(bert().compare("a", ["a a a a"]))
    palette = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"]
    assert [line.get_color() for line in axes.lines] == palette


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
    assert names(axes) == ("state", "right decisions (%), 95% interval", "")
    ends = np.array(axes.collections[0].get_segments())[:, :, 1]
    assert ends == pytest.approx(np.array([[50.9, 56.4], [52.3, 57.7], [57.3, 62.7]]))
    draw(axes)
    with pytest.raises(ValueError, match=r"no row such as 'state 0 .* of scripts/senses.py"):
        read_accuracies("sum of all layers                60.0%  (57.3% to 62.7%)")


def test_layers() -> None:
    states = bert().states("I am the walrus.")
    axes = plot_layers(states, "$a text")
    assert names(axes) == ("state", "state", "$a text")
    assert axes.images[0].get_cmap().name == "cividis"
    assert axes.figure.axes[1].get_ylabel() == "mean cosine"
    vectors = states.hidden_states
    expected = torch.cosine_similarity(vectors[1], vectors[3], dim=-1).mean()
    assert drawn(axes)[1, 3] == pytest.approx(expected.item(), abs=1e-6)
    assert np.diag(drawn(axes)) == pytest.approx(np.ones(4), abs=1e-6)
    draw(axes)


def test_ablation_and_patching() -> None:
    effects = torch.tensor([[0.5, -1.0, 0.0], [0.1, 0.2, 0.3]])
    axes = plot_ablation(effects, "nats")
    assert axes.images[0].get_clim() == (-1, 1)  # no effect has the colour between
    assert axes.images[0].get_cmap().name == "PuOr_r"
    assert names(axes) == ("head that is taken out", "its layer", "")
    assert (labels(axes, "x"), labels(axes, "y")) == (["1", "2", "3"], ["1", "2"])
    assert axes.figure.axes[1].get_ylabel() == "change of the output (nats)"
    plot_ablation(torch.zeros(2, 3))  # and nothing to divide by
    grid = torch.rand(5, 4)
    axes = plot_patching(grid, TOKENS, "nats")
    assert names(axes) == ("token that is patched", "state", "")
    assert axes.images[0].get_cmap().name == "cividis"
    assert (labels(axes, "x"), labels(axes, "y")) == (TOKENS, ["0", "1", "2", "3", "4"])
    assert np.array_equal(drawn(axes), grid.numpy())
    assert axes.figure.axes[1].get_ylabel() == "output (nats)"
    draw(axes)
    with pytest.raises(ValueError, match="3 tokens for a grid of shape"):
        plot_patching(grid, TOKENS[:3])


def test_training() -> None:
    log = [{"step": n, "loss": 3 / n, "learning_rate": 1e-4} for n in (10, 20, 30)]
    log.insert(2, {"step": 20, "evaluation": {"accuracy": 0.5, "loss": 0.4}})
    axes = plot_training(map(json.dumps, log))
    assert axes.lines[0].get_xydata() == pytest.approx(np.array([[n, 3 / n] for n in (10, 20, 30)]))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss (nats)")
    right = axes.figure.axes[1]
    assert [(line.get_label(), *line.get_ydata()) for line in right.lines] == [
        ("evaluation accuracy", 0.5),
        ("evaluation loss", 0.4),
    ]
    assert right.get_ylabel() == "evaluation"
    legend = axes.get_legend()
    assert legend is not None
    told = ["training loss", "evaluation accuracy", "evaluation loss"]
    assert [text.get_text() for text in legend.get_texts()] == told
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
    assert plot_attention(torch.rand(4, 4), TOKENS, "a title", axes=axes[0]) is axes[0]
    assert plot_ablation(torch.rand(2, 3), axes=axes[1]) is axes[1]
    for each in axes:
        assert min(text.get_size() for text in (each.xaxis.label, each.yaxis.label)) >= 14
        assert each.title.get_size() >= 14
        assert min(label.get_size() for label in each.get_xticklabels()) >= 13
