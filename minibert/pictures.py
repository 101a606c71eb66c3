"""From a command line to a picture: what `minibert plot` draws of which words, and its file.

Read next: plan.py.
"""

import logging
import re
import textwrap
import warnings
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
    isolate,
    plot_attention,
    plot_layers,
    plot_senses,
    plot_similarity,
    read_accuracies,
)
from minibert.shards import write_output

_log = logging.getLogger(__name__)

FORMATS = (".png", ".svg", ".pdf")


class Order(NamedTuple):
    """What is to be drawn, and where to.

    kind: "attention" or "layers" of a text; "similarity" of a word in texts; "senses" of a file.
    what: the words of the command line: a text, a word and texts, or what scripts/senses.py wrote.
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
    printed = list(Lines(order.what[0]))
    axes = plot_senses(read_accuracies("\n".join(printed)))
    axes.title.set_text("" if printed[0].startswith("state ") else printed[0])  # of which model
    return axes


def draw(bert: Bert, order: Order) -> Axes:
    """What a model makes of the words; a ValueError if it has no such head, or the text no word."""
    axes = _draw(bert, order)
    name = Path(bert.source.name).resolve().name if bert.source else "a BERT"
    axes.title.set_text(f"{name}: {axes.get_title()}")
    return axes


def _draw(bert: Bert, order: Order) -> Axes:
    first, rest = order.what[0], order.what[1:]
    if order.kind == "similarity":
        return plot_similarity(bert.compare(first, rest), first, texts=rest)
    states = bert.states(read_pair(first).given, attentions=True)
    if order.head is None or states.attentions is None:
        return plot_layers(states, isolate(textwrap.shorten(first, 80, placeholder=" …")))
    layer, head = order.head
    title, (layers, heads) = f"head {layer}-{head}", states.attentions.shape[:2]
    if not (1 <= layer <= layers and 1 <= head <= heads):
        raise ValueError(f"there is no {title}: there are 1-1 to {layers}-{heads}")
    return plot_attention(states.attentions[layer - 1, head - 1], states.tokens, title)


def save_plot(axes: Axes, path: Path) -> None:
    """Write the figure of some Axes; the same drawing gives the same bytes.

    What no installed font has is drawn as boxes, and told in one line of the log.

    Raises:
        OSError: if the file cannot be written.
    """
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("these Axes are in no figure")
    # Without a date, and with names that are no random numbers.
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    drawn = BytesIO()
    with rc_context({"svg.hashsalt": "minibert"}), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figure.savefig(drawn, dpi=150, format=path.suffix[1:], metadata=metadata)
    missing = {}
    for warning in told:
        if glyph := re.match(r"Glyph (\d+) ", str(warning.message)):
            missing[chr(int(glyph[1]))] = True
        else:
            warnings.warn(warning.message, stacklevel=2)
    if missing:
        _log.warning("no font here has %s; boxes stand there", " ".join(missing))
    write_output(path, drawn.getvalue())
