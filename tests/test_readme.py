"""Runs what the README shows, and compares what is printed with what the README says is printed."""

import contextlib
import importlib
import inspect
import io
import re

import pytest
from conftest import on_a_terminal
from test_layout import BUDGETS, ROOT
from test_model import MUTATIONS

import minibert

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SESSIONS = [block for language, block in BLOCKS if language == "console"]
COMMANDS = [
    pytest.param(command, "".join(expected), id=command[:40])
    for session in SESSIONS
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
]


def test_every_block_is_run() -> None:
    assert {language for language, _ in BLOCKS} == {"console", "python", "text"}
    assert len(COMMANDS) == README.count("\n$ ")
    assert len(README.splitlines()) < 350


def test_pictures_are_there_and_small() -> None:
    shown = re.findall(r"!\[[^\]]+\]\((scripts/pictures/[^)]+)\)", README)
    assert shown
    made = {str(path.relative_to(ROOT)) for path in (ROOT / "scripts" / "pictures").iterdir()}
    assert set(shown) == made
    assert all((ROOT / picture).stat().st_size < 200_000 for picture in shown)


@pytest.mark.usefixtures("minilm_folder")
@pytest.mark.parametrize(("command", "expected"), COMMANDS)
def test_commands(command: str, expected: str) -> None:
    if command == "scripts/test":
        command = "scripts/test --version"  # all but pytest, which is what runs this
        expected = ""
    printed = on_a_terminal("sh", "-c", command)
    if expected:
        assert printed == expected


@pytest.mark.usefixtures("minilm_folder")
def test_python_blocks() -> None:
    names: dict[str, object] = {}
    runs = 0
    for (language, block), (next_language, expected) in zip(BLOCKS, BLOCKS[1:], strict=False):
        if language == "python":
            assert next_language == "text", "each block of Python is followed by its output"
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block, "README.md", "exec"), names)
            assert printed.getvalue() == expected
            runs += 1
    assert runs == README.count("```python")


def test_names_and_numbers_are_true() -> None:
    rows = re.findall(r"^\| (`\w+\.py`.*?) \|(.*)\|$", README, re.MULTILINE)
    stems = [re.findall(r"`(\w+)\.py`( \*)?", files) for files, _ in rows]
    assert [stem for row in stems for stem, _ in row] == list(BUDGETS)
    starred = [stem for row in stems for stem, star in row if star]
    assert starred == ["config", "embeddings", "encoder", "model"]
    for name in re.findall(r"`(?:minibert\.)?(\w+)`", "".join(text for _, text in rows)):
        assert name == "minibert" or hasattr(minibert, name), name
    assert f"{len(MUTATIONS)} classic" in README


ROWS = re.findall(r"^\| (\[[A-Z]\d\d\].*?) \| (.*?) \| (.*?) \| (.*?) \|$", README, re.MULTILINE)


def docstrings(symbol: str) -> str:
    """Those of a module and of what is named in it, down to the symbol; without line ends."""
    module, *names = symbol.split(".")
    item: object = importlib.import_module(f"minibert.{module}")
    found = [inspect.getdoc(item) or ""]
    for name in names:
        item = getattr(item, name)
        found.append(inspect.getdoc(item) or "")
    return " ".join(" ".join(found).split())


def places(paper: str) -> list[tuple[str, str]]:
    """ "[V17] figure 1, section 3.1; [D18] table 7" to each tag with each of its places."""
    references = [reference.partition(" ") for reference in paper.split("; ")]
    return [(tag, place) for tag, _, some in references for place in some.split(", ")]


def test_the_papers_are_in_the_table() -> None:
    assert len(ROWS) == README.count("\n| [") == 17
    cited = {place for row in ROWS for place in places(row[0])}
    for tag, what in {
        "[V17]": ("equation (1)", "equation (2)", "figure 1", "figure 2"),
        "[D18]": ("figure 1", "figure 2", "figure 4", "table 7", "appendix A.2"),
    }.items():
        assert {(tag, place) for place in what} <= cited


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_row_of_the_papers_is_in_the_code(row: tuple[str, str, str, str]) -> None:
    paper, says, here, departs = row
    assert says
    assert departs
    symbols = re.findall(r"`([\w.]+)`", here)
    assert here == ", ".join(f"`{symbol}`" for symbol in symbols)
    for symbol in symbols:
        text = docstrings(symbol)
        for tag, place in places(paper):
            cited = rf"{re.escape(tag)}[^\[]*{re.escape(place)}(?!\.?\d)"
            assert re.search(cited, text), f"{symbol} does not say {tag} {place}"
