"""Labelled examples from files: tables (TSV, CSV, JSON lines, GLUE), CoNLL columns, SQuAD's JSON.

Every file is read to its end before anything is trained, and what is wrong with it is an error
that names the file and the line. Read next: features.py.
"""

import csv
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from minibert.config import CheckpointError
from minibert.files import is_file, looks_like
from minibert.lines import Lines

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Columns(NamedTuple):
    """Which columns of a table hold what: names of the first row; or numbers, where none has."""

    text: str | int = "text"
    pair: str | int | None = None  # None: there is one text to an example
    label: str | int = "label"


# The layouts of the GLUE benchmark: files train.tsv and dev.tsv (mnli: dev_matched.tsv, ...).
GLUE = {
    "cola": Columns(3, None, 1),
    "sst-2": Columns("sentence"),
    "mrpc": Columns("#1 String", "#2 String", "Quality"),
    "sts-b": Columns("sentence1", "sentence2", "score"),
    "qqp": Columns("question1", "question2", "is_duplicate"),
    "mnli": Columns("sentence1", "sentence2", "gold_label"),
    "qnli": Columns("question", "sentence"),
    "rte": Columns("sentence1", "sentence2"),
    "wnli": Columns("sentence1", "sentence2"),
}


class Labelled(NamedTuple):
    """A text or a pair, and what it is."""

    place: str  # file and line
    text: str
    pair: str | None
    label: str


class Tagged(NamedTuple):
    """A sentence, word by word."""

    path: Path
    line: int  # of its first word; each has the next
    words: list[str]
    tags: list[str]

    def place(self, word: int) -> str:
        """Of a word: file and line."""
        return f"{self.path} line {self.line + word}"


class Question(NamedTuple):
    """A question to a text."""

    place: str
    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]  # each right; where it starts in context; none: no answer


def read_table(path: Path, columns: Columns) -> list[Labelled]:
    """A text or pair, and a label, a row.

    Args:
        path: .tsv (a tab between two cells, and nothing is quoted, as in GLUE), .csv (RFC 4180) or
            .jsonl (an object a line; a label may be a number).
        columns: where to find what.

    Raises:
        CheckpointError: if the file cannot be read, has no examples, or a row is not as the others.
    """
    kinds: dict[str, Callable[[Path], Iterator[tuple[int, list[str]]]]] = {
        ".tsv": _tsv_rows,
        ".csv": _csv_rows,
    }
    if path.suffix == ".jsonl":
        return _some(path, list(_objects(path, columns)))
    if path.suffix not in kinds:
        raise CheckpointError(f"{path}: a table must be .tsv, .csv or .jsonl")
    return _some(path, list(_cells(path, kinds[path.suffix](path), columns)))


def numbers(examples: Sequence[Labelled]) -> list[float]:
    """The labels of a regression; a CheckpointError if one is not a finite number."""
    values = []
    for example in examples:
        try:
            values.append(float(example.label))
        except ValueError:
            values.append(math.nan)
        if not math.isfinite(values[-1]):
            raise CheckpointError(f"{example.place}: {example.label!r} is not a number")
    return values


def read_conll(path: Path) -> list[Tagged]:
    """A word a line, its tag in the last column; a blank line ends a sentence.

    Columns are parted by tabs or spaces; -DOCSTART- lines are passed over.

    Raises:
        CheckpointError: if the file cannot be read, has no examples, or a line is not as the first.
    """
    sentences: list[Tagged] = []
    width, is_new = 0, True
    for number, line in _lines(path):
        cells = line.split()
        if not cells or cells[0] == "-DOCSTART-":
            is_new = True
            continue
        width = width or len(cells)
        if len(cells) != width or width < 2:
            raise CheckpointError(
                f"{path} line {number}: expected {max(2, width)} columns, got {len(cells)}"
            )
        if is_new:
            sentences.append(Tagged(path, number, [], []))
            is_new = False
        sentences[-1].words.append(cells[0])
        sentences[-1].tags.append(cells[-1])
    return _some(path, sentences)


def read_squad(path: Path) -> list[Question]:
    """The questions of a file of SQuAD, version 1.1 or 2.0.

    An answer that does not stand where the file says is left out, with a warning that counts them;
    Google's code does the same (google-research/bert@eedf571 run_squad.py:255-265).

    Raises:
        CheckpointError: if it is not such a file, or has no questions.
    """
    try:
        content = path.read_bytes() if is_file(path) else None
        data = None if content is None else json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        what = looks_like(content) if isinstance(content, bytes) else ""
        raise CheckpointError(f"{path} is not a readable JSON file: {what or error}") from error
    if content is None:
        raise CheckpointError(f"cannot read {path}: No such file or directory")
    questions, lost = [], 0
    for at, article in _items(str(path), data, "data"):
        for at_paragraph, paragraph in _items(at, article, "paragraphs"):
            context = _get(at_paragraph, paragraph, "context", str)
            for place, item in _items(at_paragraph, paragraph, "qas"):
                question = _question(place, item, context)
                right = [(t, n) for t, n in question.answers if context[n : n + len(t)] == t]
                lost += len(question.answers) - len(right)
                if right or not question.answers:
                    questions.append(question._replace(answers=right))
    if lost:
        _log.warning("%s: left out %d answers that do not stand where it says", path, lost)
    return _some(path, questions)


def _question(place: str, item: Any, context: str) -> Question:
    answers = [
        (_get(at, answer, "text", str), _get(at, answer, "answer_start", int))
        for at, answer in _items(place, item, "answers")
    ]
    is_impossible = item.get("is_impossible", False)
    if is_impossible != (not answers):
        raise CheckpointError(f"{place}: {len(answers)} answers with is_impossible {is_impossible}")
    name, question = _get(place, item, "id", str), _get(place, item, "question", str)
    return Question(place, name, question, context, answers)


def _items(place: str, parent: Any, key: str) -> Iterator[tuple[str, Any]]:
    for number, item in enumerate(_get(place, parent, key, list)):
        yield f"{place} {key}[{number}]", item


def _get(place: str, parent: Any, key: str, kind: type[_T]) -> _T:
    value = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(value, kind):
        raise CheckpointError(f"{place} has no {key!r} of the kind {kind.__name__}, as SQuAD has")
    if isinstance(value, str):
        _check_text(place, value)
    return value


def _check_text(place: str, text: str) -> None:
    """JSON can name halves of surrogate pairs, which are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise CheckpointError(f"{place}: a text has {half}, half of a surrogate pair") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Each line with its number, from 1."""
    try:
        if not is_file(path):
            raise CheckpointError(f"cannot read {path}: No such file or directory")
        with closing(Lines(str(path))) as lines:
            yield from enumerate(lines, 1)
    except OSError as error:
        raise CheckpointError(str(error)) from error


def _tsv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in _lines(path):
        yield number, line.split("\t")


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """A cell in quotes may go over several lines."""
    reader = csv.reader((line + "\n" for _, line in _lines(path)), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise CheckpointError(f"{path} line {reader.line_num}: {error}") from error


def _cells(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: Columns
) -> Iterator[Labelled]:
    first = next(rows, None)
    if first is None:
        return
    has_names = isinstance(columns.text, str)
    wanted = [column for column in columns if column is not None]
    known: list[Any] = first[1] if has_names else list(range(len(first[1])))
    if missing := [str(column) for column in wanted if column not in known]:
        raise CheckpointError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(map(str, known))}"
        )
    if twice := [column for column in wanted if known.count(column) > 1]:
        raise CheckpointError(f"{path} has {known.count(twice[0])} columns {twice[0]}")
    places = [None if column is None else known.index(column) for column in columns]
    for number, row in rows if has_names else _chain(first, rows):
        if len(row) != len(known):
            raise CheckpointError(
                f"{path} line {number}: expected {len(known)} columns, got {len(row)}"
            )
        text, pair, label = (None if n is None else row[n] for n in places)
        yield _labelled(f"{path} line {number}", text, pair, label)


def _labelled(place: str, text: str | None, pair: str | None, label: str | None) -> Labelled:
    if not label:
        raise CheckpointError(f"{place} has no label")
    return Labelled(place, text or "", pair, label)


def _chain(first: _T, rest: Iterator[_T]) -> Iterator[_T]:
    yield first
    yield from rest


def _objects(path: Path, columns: Columns) -> Iterator[Labelled]:
    for number, line in _lines(path):
        place = f"{path} line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{place} is not JSON: {error}") from error
        cells: list[str | None] = []
        for column in columns:
            value = values.get(column) if isinstance(values, dict) else None
            is_right = isinstance(value, str) or (column == columns.label and _is_number(value))
            if column is not None and not is_right:
                raise CheckpointError(f"{place} is no JSON object with a text as {column!r}")
            cells.append(None if column is None else str(value))
            _check_text(place, cells[-1] or "")
        yield _labelled(place, *cells)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _some(path: Path, examples: list[_T]) -> list[_T]:
    if not examples:
        raise CheckpointError(f"{path} has no examples")
    return examples
