import builtins
import re
import sys
from pathlib import Path

import pytest
from test_plots import PRINTED

from minibert.cli import main

pytest.importorskip("matplotlib", reason="needs matplotlib (extra plot)")

from minibert.loading import load
from minibert.pictures import Order, draw, save_plot

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
    assert axes.get_title() == "head 3-2"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["layers", "a", "-o", "{tmp}/a.gif"], 2, "a.gif must end with .png, .svg or .pdf"),
        (["layers", "a", "-o", "-"], 2, "- must end with .png, .svg or .pdf"),
        (["attention", "a", "-o", "{tmp}/a.png"], 2, "plot attention needs --head"),
        (["layers", "a", "--head", "1-1", "-o", "a.png"], 2, "the others have none"),
        (["layers", "a", "b", "-o", "{tmp}/a.png"], 2, "each other kind one argument"),
        (["similarity", "a", "-o", "{tmp}/a.png"], 2, "plot similarity takes WORD TEXT"),
        (["similarity", "a", "a", "-o", "{tmp}/a.png"], 2, "the word stands in one place only"),
        (["similarity", "i", "a", "-o", "{tmp}/a.png"], 2, "text 1 does not have the word 'i'"),
        (["attention", "a", "--head", "4-1", "-o", "{tmp}/a.png"], 2, "no head 4-1: .* to 3-3"),
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


def test_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    for name in ("minibert.pictures", "minibert.plots"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert main(["plot", "layers", "a", "-o", "a.png"]) == 1
    told = "matplotlib is not installed; pip install 'minibert-pytorch[plot]'"
    assert capsys.readouterr().err == f"minibert: {told}\n"


def test_axes_in_a_figure_are_saved_with_it(tmp_path: Path, folder: Path) -> None:
    axes = draw(load(folder), Order("layers", ["a b"], None, tmp_path / "a.png"))
    save_plot(axes, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
