"""Pictures for a slide, drawn by matplotlib (the extra `plot`): functions that return the Axes.

Each draws into the Axes that it is given, or into a figure of its own: `axes.figure.savefig(...)`.
Colours are Okabe and Ito's, Blues, cividis and purple to orange, which the colour-blind keep apart.
Letters are large enough for the last row; what could not be read is a ValueError. States are as in
names.py; layers and heads are from 1, as in [Clark et al. 2019]. Read next: pictures.py.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple
from unicodedata import bidirectional

import numpy as np
import torch
from torch import Tensor

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager
except ImportError as error:
    raise ModuleNotFoundError("matplotlib is not installed; pip install matplotlib") from error

from minibert.bert import States
from minibert.senses import Comparison, excerpts

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", ":", "-.")
_LETTERS, _SMALL = 14, 12  # points, in a figure of 6 to 10 inches: a slide has 13 by 7.5
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": _SMALL, "title_fontsize": _SMALL}
_LABELS = 28  # along 7 inches, for letters of that size
_MOST = 128  # rows or columns: each is still 4 points wide
_FALLBACKS = (  # for letters that matplotlib's own font lacks: on Linux, macOS, Windows
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Arial Unicode MS", "Microsoft YaHei", "Noto Emoji", "Segoe UI Emoji"),
)
_Ends = tuple[float | None, float | None]
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
        attention: (T, T): `states.attentions[2, 7]` is head 3-8; or what `word_attention` gave.
        tokens: T labels.
        title: above it.
        axes: where to draw.
    """
    if attention.shape != (len(tokens), len(tokens)):
        raise ValueError(f"{len(tokens)} tokens for attention of shape {tuple(attention.shape)}")
    axes = _matrix(axes, attention, "Blues", (0.0, None), "attention probability")
    _name_ticks(axes, tokens, tokens)
    _name_axes(axes, "token that is read", "token that reads", title)
    return axes


def plot_similarity(
    comparison: Comparison, word: str = "", axes: Axes | None = None, texts: Sequence[str] = ()
) -> Axes:
    """How alike a word is to itself in other places, layer by layer: a line for each two places.

    Args:
        comparison: what `Bert.compare` gave.
        word: for the title.
        axes: where to draw.
        texts: those that were compared, to show the places in the title.

    Raises:
        ValueError: if the word stands in one place, or in so many that lines look alike.
    """
    places = len(comparison.occurrences)
    pairs = list(combinations(range(places), 2))
    if not 1 <= len(pairs) <= len(_COLORS) * len(_DASHES):
        raise ValueError(f"the word stands in {places} places, and 2 to 8 can be drawn apart")
    shown = excerpts(comparison, texts, 64) if texts else []
    axes = _axes(axes, 8.0, 5.0 + 0.3 * len(shown))
    layers = range(len(comparison.similarity))
    for number, (a, b) in enumerate(pairs):
        axes.plot(comparison.similarity[:, a, b], label=f"{a + 1} and {b + 1}", **_line(number))
    axes.set_xticks(list(layers), ["static", *map(str, layers[1:])])
    title = [f"“{isolate(word)}” in {places} places"] if word else []
    title += [f"{number}  {isolate(around)}" for number, around in enumerate(shown, start=1)]
    _name_axes(axes, "layer", "cosine", "\n".join(title))
    columns = 1 + len(pairs) // 15
    axes.legend(title="places", loc="upper left", bbox_to_anchor=(1, 1), ncols=columns, **_LEGEND)
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
    if not accuracies:
        raise ValueError("there is no accuracy to draw")
    axes = _axes(axes, 9.0, 5.5)
    names = sorted(accuracies, key=lambda name: not name.startswith("state "))
    places = list(range(len(names)))
    share, low, high = np.array([accuracies[name] for name in names]).T * 100  # (N) each
    count = sum(name.startswith("state ") for name in names)
    axes.plot(share[:count], **_line(0))
    axes.errorbar(places, share, [share - low, high - share], fmt="o", color=_COLORS[0], capsize=4)
    axes.axhline(50, color="#767676", linestyle=":", linewidth=1.5)
    axes.text(places[-1], 50, "chance", ha="right", va="bottom", fontsize=_SMALL)
    axes.set_xticks(places, [name.removeprefix("state ") for name in names])
    for label in axes.get_xticklabels()[count:]:
        label.set(rotation=30, ha="right", rotation_mode="anchor")
    _name_axes(axes, "state", "right decisions (%), 95% interval")
    return axes


def plot_layers(states: States, title: str = "", axes: Axes | None = None) -> Axes:
    """How far vectors move from state to state: the cosine of a token's vectors in each two states.

    The mean over the tokens of a text, [CLS] and [SEP] among them.
    """
    units = torch.nn.functional.normalize(states.hidden_states.double(), dim=-1)  # (L + 1, T, H)
    similarity = torch.einsum("ith,jth->ijt", units, units).mean(dim=-1)
    lowest = min(0.0, similarity.min().item())
    axes = _matrix(axes, similarity, "cividis", (lowest, 1.0), "mean cosine")
    _name_axes(axes, "state", "state", title)
    return axes


def plot_ablation(effects: Tensor, unit: str = "", axes: Axes | None = None) -> Axes:
    """How an output changes without each head.

    Args:
        effects: (L, A), what `ablate_each_head` gave.
        unit: of the output, such as "nats".
        axes: where to draw. Layers and heads are numbered from 1.
    """
    most = max(effects.abs().flatten().tolist(), default=0.0) or 1.0
    told = f"change of the output ({unit})" if unit else "change of the output"
    axes = _matrix(axes, effects, "PuOr_r", (-most, most), told)
    layers, heads = ([str(number + 1) for number in range(count)] for count in effects.shape)
    _name_ticks(axes, heads, layers, turn=0)
    _name_axes(axes, "head that is taken out", "its layer")
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
    axes = _matrix(axes, grid, "cividis", (None, None), f"output ({unit})" if unit else "output")
    _name_ticks(axes, tokens, [str(state) for state in range(len(grid))])
    _name_axes(axes, "token that is patched", "state")
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
    curves = _read_log(lines)
    axes = _axes(axes, 8.0, 5.0)
    handles = axes.plot(*zip(*curves.pop(""), strict=True), label="training loss", **_line(0))
    _name_axes(axes, "step", "loss (nats)")
    if curves:
        right = axes.twinx()
        for number, (name, points) in enumerate(curves.items(), start=1):
            look = {"label": f"evaluation {name}", "marker": "o", **_line(number)}
            handles += right.plot(*zip(*points, strict=True), **look)
        right.spines["top"].set_visible(False)
        _name_axes(right, "", "evaluation")
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, **_LEGEND)
    return axes


def _axes(axes: Axes | None, width: float, height: float) -> Axes:
    """Axes to draw in; by themselves, of so many inches."""
    if axes is None:
        axes = Figure(figsize=(width, height), layout="constrained").add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _matrix(axes: Axes | None, values: Tensor, colors: str, ends: _Ends, told: str) -> Axes:
    """A matrix, the first row on top, and the scale of its colours; None is what it has."""
    rows, columns = values.shape
    if not 1 <= min(rows, columns) <= max(rows, columns) <= _MOST:
        raise ValueError(f"{rows} x {columns} cells; 1 to {_MOST} a side can be read: cut the text")
    if not values.isfinite().all():
        raise ValueError("some of the numbers are not finite, and have no colour")
    axes = _axes(axes, min(max(6, 0.4 * columns + 2.5), 9.5), min(max(5, 0.4 * rows + 1.5), 8.5))
    image = axes.imshow(values.float().cpu().numpy(), colors, vmin=ends[0], vmax=ends[1])
    axes.set_aspect("equal" if rows == columns else "auto")
    bar = axes.figure.colorbar(image, ax=axes)
    bar.set_label(told, fontsize=_LETTERS)
    bar.ax.tick_params(labelsize=_SMALL)
    return axes


def _name_axes(axes: Axes, across: str, up: str, title: str = "") -> None:
    """Say what stands along each axis, and above; wrapping would measure a "$" as a formula."""
    axes.tick_params(labelsize=_LETTERS - 1)
    axes.set_xlabel(across, fontsize=_LETTERS)
    axes.set_ylabel(up, fontsize=_LETTERS)
    axes.set_title(title, size=_LETTERS, x=0, ha="left", wrap="$" not in title, **_plain())


def _name_ticks(axes: Axes, across: Sequence[str], down: Sequence[str], turn: float = 90) -> None:
    """Every label, or every n-th where they would touch."""
    for axis, labels, angle in ((axes.xaxis, across, turn), (axes.yaxis, down, 0.0)):
        step = -(-len(labels) // _LABELS)
        short = [label if len(label) < 20 else f"{label[:19]}…" for label in labels[::step]]
        axis.set_ticks(range(0, len(labels), step), short, rotation=angle, **_plain())


def isolate(text: str) -> str:
    """For a title: what begins from right to left is so by itself, and turns nothing around it."""
    strong = [kind for kind in map(bidirectional, text) if kind in ("L", "R", "AL")]
    return f"\u200e\u202b{text}\u202c\u200e" if strong and strong[0] != "L" else text


def _plain() -> dict[str, Any]:
    """How text is drawn: a dollar sign begins no formula, and letters may be of any script."""
    fonts = ["sans-serif", *(name for name in _FALLBACKS if name in fontManager.get_font_names())]
    return {"family": fonts, "parse_math": False}


def _line(number: int) -> dict[str, Any]:
    """Its colour, and once colours come again, its dashes."""
    dashes = _DASHES[number // len(_COLORS) % len(_DASHES)]
    return {"color": _COLORS[number % len(_COLORS)], "linestyle": dashes, "linewidth": 2}


def _read_log(lines: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """(step, number) for each number of the evaluations, by name; the losses have the name ""."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            told = entry["evaluation"] if "evaluation" in entry else {"": entry["loss"]}
            for name, value in told.items():
                curves.setdefault(name, []).append((entry["step"], float(value)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            told = 'expected {"step": 1, "loss": 2.3} or {"step": 1, "evaluation": {"name": 0.5}}'
            raise ValueError(f"line {number} of the log: {told}, got {line[:60]!r}") from error
    if "" not in curves:
        raise ValueError("no line of the log has a loss")
    return curves
