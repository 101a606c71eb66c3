"""Pictures for a slide, drawn by matplotlib (the extra `plot`): functions that return the Axes.

Each draws into the Axes that it is given, or into a figure of its own: `axes.figure.savefig(...)`.
Colours are Okabe and Ito's, and the scales Blues, cividis and purple to orange, which all kinds of
colour-blindness keep apart; letters are large enough for the last row. States are numbered as in
names.py; layers and heads from 1, as [Clark et al. 2019] do. Read next: pictures.py.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from minibert.bert import States
from minibert.senses import Comparison

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", ":", "-.")
_LETTERS = 14  # points, in a figure that is 6 inches wide or more
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": _LETTERS - 2}
_ROW = re.compile(r"^(\S.*?) +(\d+\.\d)%  \((\d+\.\d)% to (\d+\.\d)%\)$", re.MULTILINE)


class Accuracy(NamedTuple):
    """A share of right decisions, and where it may lie: 0 to 1."""

    share: float
    low: float
    high: float


def plot_attention(
    attention: Tensor, tokens: Sequence[str], title: str = "", axes: Axes | None = None
) -> Axes:
    """One head as a matrix: each row reads, each column is read.

    Args:
        attention: (T, T), such as `states.attentions[2, 7]`, which people call head 3-8; or what
            `word_attention` makes of it.
        tokens: T labels.
        title: above it.
        axes: where to draw.
    """
    if attention.shape != (len(tokens), len(tokens)):
        raise ValueError(f"{len(tokens)} tokens for attention of shape {tuple(attention.shape)}")
    axes = _axes(axes, max(6.0, 0.4 * len(tokens) + 2.5), max(5.0, 0.4 * len(tokens) + 1.5))
    _matrix(axes, attention, "Blues", (0.0, attention.max().item()), "attention probability")
    _name_ticks(axes, tokens, tokens)
    axes.set(xlabel="token that is read", ylabel="token that reads", title=title)
    return axes


def plot_similarity(comparison: Comparison, word: str = "", axes: Axes | None = None) -> Axes:
    """How alike a word is to itself in other places, layer by layer: a line for each two places.

    Args:
        comparison: what `Bert.compare` gave.
        word: for the title.
        axes: where to draw.

    Raises:
        ValueError: if the word stands in one place only, so that there is nothing to compare.
    """
    pairs = list(combinations(range(len(comparison.occurrences)), 2))
    if not pairs:
        raise ValueError("the word stands in one place only; it takes two to compare")
    axes = _axes(axes, 8.0, 5.0)
    layers = range(len(comparison.similarity))
    for number, (a, b) in enumerate(pairs):
        values = comparison.similarity[:, a, b]
        axes.plot(layers, values, label=f"{a + 1} and {b + 1}", linewidth=2, **_line(number))
    axes.set_xticks(list(layers), ["static", *map(str, layers[1:])])
    title = f"“{word}” in {len(comparison.occurrences)} places" if word else ""
    axes.set(xlabel="layer", ylabel="cosine", title=title)
    legend = axes.legend(title="places", ncols=1 + len(pairs) // 10, **_LEGEND)
    legend.get_title().set_fontsize(_LETTERS - 2)
    return axes


def read_accuracies(printed: str) -> dict[str, Accuracy]:
    """The rows that scripts/senses.py printed.

    >>> read_accuracies("state 0                          53.7%  (50.9% to 56.4%)")
    {'state 0': Accuracy(share=0.537, low=0.509, high=0.564)}

    Raises:
        ValueError: if there is none.
    """
    rows = {
        name: Accuracy(*(round(float(value) / 100, 3) for value in values))
        for name, *values in _ROW.findall(printed)
    }
    if not any(name.startswith("state ") for name in rows):
        raise ValueError("no row such as 'state 0   53.7%  (50.9% to 56.4%)' of scripts/senses.py")
    return rows


def plot_senses(accuracies: Mapping[str, Accuracy], axes: Axes | None = None) -> Axes:
    """Which state knows the sense of a word: accuracy by state, with its 95% interval.

    Args:
        accuracies: what read_accuracies gave. "state 0", "state 1", ... become a line; the rest,
            such as "sum of all layers", stand to its right.
        axes: where to draw.
    """
    axes = _axes(axes, 9.0, 5.0)
    names = sorted(accuracies, key=lambda name: not name.startswith("state "))
    places = list(range(len(names)))
    values = np.array([accuracies[name] for name in names]) * 100  # (N, 3)
    share, low, high = values.T
    count = sum(name.startswith("state ") for name in names)
    axes.plot(places[:count], share[:count], color=_COLORS[0], linewidth=2)
    interval = [share - low, high - share]
    axes.errorbar(places, share, interval, fmt="o", color=_COLORS[0], capsize=4)
    axes.axhline(50, color="#767676", linestyle=":", linewidth=1.5)
    axes.annotate(
        "chance", (places[-1], 50), (0, 5), textcoords="offset points", ha="right", size=12
    )
    axes.set_xticks(places, [name.removeprefix("state ") for name in names])
    for label in axes.get_xticklabels()[count:]:
        label.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.set(xlabel="state", ylabel="right decisions (%), 95% interval")
    return axes


def plot_layers(states: States, title: str = "", axes: Axes | None = None) -> Axes:
    """How far vectors move from state to state: the cosine of a token's vectors in each two states.

    The mean over the tokens of a text, [CLS] and [SEP] among them.
    """
    units = torch.nn.functional.normalize(states.hidden_states.double(), dim=-1)  # (L + 1, T, H)
    similarity = torch.einsum("ith,jth->ijt", units, units).mean(dim=-1)
    axes = _axes(axes, 7.0, 6.0)
    _matrix(axes, similarity, "cividis", (min(0.0, similarity.min().item()), 1.0), "mean cosine")
    axes.set(xlabel="state", ylabel="state", title=title)
    return axes


def plot_ablation(effects: Tensor, unit: str = "", axes: Axes | None = None) -> Axes:
    """How an output changes without each head.

    Args:
        effects: (L, A), what `ablate_each_head` gave.
        unit: of the output, such as "nats".
        axes: where to draw. Layers and heads are numbered from 1.
    """
    layers, heads = effects.shape
    axes = _axes(axes, max(6.0, 0.5 * heads + 2), max(4.0, 0.4 * layers + 1.5))
    most = effects.abs().max().item() or 1.0
    told = f"change of the output ({unit})" if unit else "change of the output"
    _matrix(axes, effects, "PuOr_r", (-most, most), told)
    axes.set_xticks(range(heads), [str(number + 1) for number in range(heads)])
    axes.set_yticks(range(layers), [str(number + 1) for number in range(layers)])
    axes.set(xlabel="head that is taken out", ylabel="its layer")
    return axes


def plot_patching(
    grid: Tensor, tokens: Sequence[str], unit: str = "", axes: Axes | None = None
) -> Axes:
    """The output when one vector is that of another sentence, by token and state.

    Args:
        grid: (L + 1, T), what `patch_grid` gave.
        tokens: T labels.
        unit: of the output, such as "nats".
        axes: where to draw.
    """
    if grid.dim() != 2 or grid.shape[1] != len(tokens):
        raise ValueError(f"{len(tokens)} tokens for a grid of shape {tuple(grid.shape)}")
    axes = _axes(axes, max(6.0, 0.4 * len(tokens) + 2.5), max(4.0, 0.4 * len(grid) + 2))
    ends = (grid.min().item(), grid.max().item())
    _matrix(axes, grid, "cividis", ends, f"output ({unit})" if unit else "output")
    _name_ticks(axes, tokens, [str(state) for state in range(len(grid))])
    axes.set(xlabel="token that is patched", ylabel="state")
    return axes


def plot_training(lines: Iterable[str], axes: Axes | None = None) -> Axes:
    """A training run: loss by step, and each number of its evaluations as a line of its own.

    Args:
        lines: a log, a JSON object a line: {"step": 10, "loss": 2.3, ...} or
            {"step": 10, "evaluation": {"accuracy": 0.8, ...}}.
        axes: where to draw; evaluations get an axis on the right.

    Raises:
        ValueError: if a line is neither, or none has a loss.
    """
    losses, evaluations = _read_log(lines)
    axes = _axes(axes, 8.0, 5.0)
    axes.plot(*zip(*losses, strict=True), color=_COLORS[0], linewidth=2, label="loss")
    axes.set(xlabel="step", ylabel="loss (nats)")
    handles = axes.get_legend_handles_labels()[0]
    if evaluations:
        right = axes.twinx()
        for number, (name, points) in enumerate(evaluations.items(), start=1):
            steps, values = zip(*points, strict=True)
            right.plot(steps, values, label=name, marker="o", **_line(number))
        right.set_ylabel("evaluation")
        right.spines["top"].set_visible(False)
        _enlarge(right)
        handles = handles + right.get_legend_handles_labels()[0]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, **_LEGEND)
    return axes


def _axes(axes: Axes | None, width: float, height: float) -> Axes:
    """Axes to draw in; by themselves, of so many inches."""
    if axes is None:
        axes = Figure(figsize=(width, height), layout="constrained").add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    _enlarge(axes)
    return axes


def _enlarge(axes: Axes) -> None:
    axes.tick_params(labelsize=_LETTERS - 1)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set(fontsize=_LETTERS, parse_math=False)


def _matrix(axes: Axes, values: Tensor, colors: str, ends: tuple[float, float], told: str) -> None:
    """A matrix, the first row on top, and the scale of its colours."""
    image = axes.imshow(values.float().cpu().numpy(), colors, vmin=ends[0], vmax=ends[1])
    figure = axes.get_figure(root=True)
    if figure is not None:
        bar = figure.colorbar(image, ax=axes)
        bar.set_label(told, fontsize=_LETTERS)
        bar.ax.tick_params(labelsize=_LETTERS - 2)


def _name_ticks(axes: Axes, across: Sequence[str], down: Sequence[str]) -> None:
    """Labels are text: a dollar sign in them begins no formula."""
    axes.set_xticks(range(len(across)), across, rotation=90, parse_math=False)
    axes.set_yticks(range(len(down)), down, parse_math=False)


def _line(number: int) -> dict[str, Any]:
    """Its colour, and once colours come again, its dashes."""
    dashes = _DASHES[number // len(_COLORS) % len(_DASHES)]
    return {"color": _COLORS[number % len(_COLORS)], "linestyle": dashes}


def _read_log(
    lines: Iterable[str],
) -> tuple[list[tuple[int, float]], dict[str, list[tuple[int, float]]]]:
    """The losses, and the evaluations by name: (step, number) each."""
    losses: list[tuple[int, float]] = []
    evaluations: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            step = entry["step"]
            if "evaluation" in entry:
                for name, value in entry["evaluation"].items():
                    evaluations.setdefault(name, []).append((step, float(value)))
            else:
                losses.append((step, float(entry["loss"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            told = 'expected {"step": 1, "loss": 2.3} or {"step": 1, "evaluation": {"name": 0.5}}'
            raise ValueError(f"line {number} of the log: {told}, got {line[:60]!r}") from error
    if not losses:
        raise ValueError("no line of the log has a loss")
    return losses, evaluations
