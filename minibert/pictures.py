"""From a command line to a picture: what `minibert plot` draws of which words, and its file.

Read next: plan.py.
"""

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes

from minibert.bert import Bert
from minibert.blocks import read_pair
from minibert.lines import Lines
from minibert.plots import (
    plot_attention,
    plot_layers,
    plot_senses,
    plot_similarity,
    read_accuracies,
)
from minibert.shards import write_output

FORMATS = (".png", ".svg", ".pdf")


class Order(NamedTuple):
    """What is to be drawn, and where to.

    kind: "attention" of a text and a head; "similarity" of a word in texts; "layers" of a text;
        "senses" of the file of what scripts/senses.py printed.
    what: the words of the command line: a text, a word and texts, or the file.
    head: (layer, head), both from 1.
    """

    kind: str
    what: Sequence[str]
    head: tuple[int, int] | None
    path: Path


def check_order(order: Order) -> None:
    """Refuse with a ValueError, before a model is loaded, what could not be drawn or written."""
    if order.path.suffix not in FORMATS:
        raise ValueError(f"{order.path} must end with {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if (order.head is None) == (order.kind == "attention"):
        raise ValueError("plot attention needs --head, such as 3-8, and the others have none")
    if (order.kind == "similarity") != (len(order.what) > 1):
        raise ValueError("plot similarity takes WORD TEXT ..., each other kind one argument")


def draw_file(order: Order) -> Axes:
    """What needs no model."""
    return plot_senses(read_accuracies("\n".join(Lines(order.what[0]))))


def draw(bert: Bert, order: Order) -> Axes:
    """What a model makes of the words; a ValueError if it has no such head, or the text no word."""
    first = order.what[0]
    if order.kind == "similarity":
        return plot_similarity(bert.compare(first, order.what[1:]), first)
    states = bert.states(read_pair(first).given, attentions=True)
    if order.head is None or states.attentions is None:
        return plot_layers(states, textwrap.shorten(first, 60))
    layer, head = order.head
    layers, heads = states.attentions.shape[:2]
    if not (1 <= layer <= layers and 1 <= head <= heads):
        raise ValueError(f"there is no head {layer}-{head}: there are 1-1 to {layers}-{heads}")
    attention = states.attentions[layer - 1, head - 1]
    return plot_attention(attention, states.tokens, f"head {layer}-{head}")


def save_plot(axes: Axes, path: Path) -> None:
    """Write the figure of some Axes; the same drawing gives the same bytes.

    Raises:
        OSError: if the file cannot be written.
    """
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("these Axes are in no figure")
    # Without a date, and with names that are no random numbers.
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    drawn = BytesIO()
    with rc_context({"svg.hashsalt": "minibert"}):
        figure.savefig(drawn, dpi=150, format=path.suffix[1:], metadata=metadata)
    write_output(path, drawn.getvalue())
