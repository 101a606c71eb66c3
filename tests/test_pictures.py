import logging
import re
import struct
from pathlib import Path

import pytest
from test_plots import PRINTED

from minibert.cli import main
from minibert.loading import load

try:
    import matplotlib as matplotlib
except ImportError:
    pytestmark = pytest.mark.skip(reason="needs matplotlib (extra plot)")  # one by one
else:
    from minibert.pictures import Order, draw, draw_file, save_plot
    from minibert.plots import isolate

STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", STARTS)
@pytest.mark.parametrize(
    "arguments",
    [
        ["attention", "I am the walrus.", "--head", "3-2"],
        ["attention", "I am ||| the walrus.", "--head", "1-1"],
        ["similarity", "walrus", "a walrus", "the walrus"],
        ["layers", "I am the walrus."],
    ],
)
def test_plot(folder: Path, tmp_path: Path, suffix: str, arguments: list[str]) -> None:
    contents = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}{suffix}"
        assert main(["plot", *arguments, "--model", str(folder), "-o", str(path)]) == 0
        contents.append(path.read_bytes())
    assert contents[0].startswith(STARTS[suffix])
    assert contents[0] == contents[1]  # nothing in it is a date or random
    if suffix == ".png":  # sharp on a slide, which has some 1920 x 1080 points
        assert struct.unpack(">I", contents[0][16:20])[0] >= 900


def test_plot_senses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, path = tmp_path / "printed.txt", tmp_path / "senses.svg"
    printed.write_text(PRINTED)
    assert main(["plot", "senses", str(printed), "-o", str(path)]) == 0
    assert path.read_bytes().startswith(b"<?xml")
    for option in (["--model", "minilm"], ["--revision", "v1"], ["--local-files-only"]):
        assert main(["plot", "senses", str(printed), "-o", str(path), *option]) == 2
        assert option[0] in capsys.readouterr().err


def test_the_head_that_is_named_is_drawn(folder: Path) -> None:
    bert = load(folder)
    states = bert.states("I am", attentions=True)
    assert states.attentions is not None
    axes = draw(bert, Order("attention", ["I am"], (3, 2), Path("a.png")))
    assert (axes.images[0].get_array() == states.attentions[2, 1].numpy()).all()
    assert axes.get_title() == "model: head 3-2"  # by the folder's name


@pytest.mark.usefixtures("minilm_folder")
def test_the_model_and_what_is_drawn_are_named(tmp_path: Path) -> None:
    bert = load("minilm")
    axes = draw(bert, Order("layers", ["A long text, " * 9], None, Path("a.png")))
    assert axes.get_title().startswith("minilm: A long text, A long")
    axes = draw(bert, Order("similarity", ["b", "a b", "b c"], None, Path("a.png")))
    assert axes.get_title() == "minilm: “b” in 2 places\n1  a [b]\n2  [b] c"
    axes = draw(bert, Order("layers", ["שלום"], None, Path("a.png")))
    assert axes.get_title() == f"minilm: {isolate('שלום')}"
    printed = tmp_path / "printed.txt"
    for text, title in ((PRINTED, PRINTED.partition("\n")[0]), (PRINTED.partition("\n")[2], "")):
        printed.write_text(text)
        axes = draw_file(Order("senses", [str(printed)], None, Path("a.png")))
        assert axes.get_title() == title


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["layers", "a", "-o", "{tmp}/a.gif"], 2, "a.gif must end with .png, .svg or .pdf"),
        (["layers", "a", "-o", "-"], 2, "- must end with .png, .svg or .pdf"),
        (["attention", "a", "-o", "{tmp}/a.png"], 2, "plot attention needs --head"),
        (["layers", "a", "--head", "1-1", "-o", "a.png"], 2, "the others have none"),
        (["layers", "a", "b", "-o", "{tmp}/a.png"], 2, "each other kind one argument"),
        (["similarity", "a", "-o", "{tmp}/a.png"], 2, "plot similarity takes WORD TEXT"),
        (
            ["similarity", "a", "a", "-o", "{tmp}/a.png"],
            2,
            "the word stands in 1 places, and 2 to 8",
        ),
        (["similarity", "i", "a", "-o", "{tmp}/a.png"], 2, "text 1 does not have the word 'i'"),
        (["attention", "a", "--head", "4-1", "-o", "{tmp}/a.png"], 2, "no head 4-1: .* to 3-3"),
        (["attention", "a " * 600, "--head", "1-1", "-o", "{tmp}/a.png"], 2, "602 tokens are more"),
        (["attention", "a", "--head", "1-0", "-o", "{tmp}/a.png"], 2, "no head 1-0: .* 1-1 to"),
        (["layers", "a", "-o", "{tmp}/no/a.png"], 1, "cannot write .*a.png: No such file"),
        (["senses", "{tmp}/none", "-o", "{tmp}/a.png"], 1, "cannot read .*none: No such file"),
    ],
)
def test_one_line_for_what_can_be_mended(
    arguments: list[str],
    status: int,
    says: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    model = [] if "senses" in given else ["--model", str(folder)]
    assert main(["plot", *given, *model]) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(says, error), error
    assert not (tmp_path / "a.png").exists()


def test_axes_in_a_figure_are_saved_with_it(tmp_path: Path, folder: Path) -> None:
    axes = draw(load(folder), Order("layers", ["a b"], None, tmp_path / "a.png"))
    save_plot(axes, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_what_no_font_has_is_told_in_one_line(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "a \U0002ffff \U0003ffff b"  # no characters, so that no font ever has them
    path = tmp_path / "a.png"
    with caplog.at_level(logging.WARNING):
        save_plot(draw(load(folder), Order("layers", [text], None, path)), path)
    (line,) = [
        record.getMessage()
        for record in caplog.records
        if "font" in record.name + record.getMessage()
    ]
    assert line == "no font here has \U0002ffff \U0003ffff; boxes stand there"
