import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minibert.config import CheckpointError
from minibert.examples import (
    GLUE,
    Columns,
    Labelled,
    Question,
    numbers,
    read_conll,
    read_squad,
    read_table,
)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


ROWS = [("one\u2028line", 'say "hi"', "yes"), ("", "b, c", "no")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'text\tid\tlabel\tother\none\u2028line\t1\tyes\tsay "hi"\n\t2\tno\tb, c\n'),
        (
            "a.tsv",
            '\ufefftext\tid\tlabel\tother\r\none\u2028line\t1\tyes\tsay "hi"\r\n\t2\tno\tb, c',
        ),
        ("a.csv", 'text,id,label,other\none\u2028line,1,yes,"say ""hi"""\n,2,no,"b, c"\n'),
        (
            "a.jsonl",
            json.dumps({"text": ROWS[0][0], "other": ROWS[0][1], "label": "yes", "id": 1})
            + '\n{"text": "", "other": "b, c", "label": "no"}\n',
        ),
    ],
)
def test_tables(tmp_path: Path, name: str, content: str) -> None:
    examples = read_table(write(tmp_path, name, content), Columns(pair="other"))
    assert [example[1:] for example in examples] == ROWS
    assert examples[1].place.endswith(f"{name} line {2 if name == 'a.jsonl' else 3}")


def test_a_cell_of_several_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'label,text\nx,"two\nlines"\ny\n')
    with pytest.raises(CheckpointError, match=r"a.csv line 4: expected 2 columns, got 1$"):
        read_table(path, Columns())
    path = write(tmp_path, "a.csv", 'label,text\nx,"two\nlines"\n')
    assert read_table(path, Columns())[0].text == "two\nlines"


# The first lines of each, shortened, as the benchmark's files have them.
LAYOUTS = {
    "cola": ("gj04\t1\t\tOur friends won't.\n", ("Our friends won't.", None, "1")),
    "sst-2": ('sentence\tlabel\nhide "new\t0\n', ('hide "new', None, "0")),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tAmrozi\tHe\n",
        ("Amrozi", "He", "1"),
    ),
    "sts-b": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tmain\tMSRvid\t2012\t0001\tnone\tnone\tA plane.\tAn air plane.\t5.000\n",
        ("A plane.", "An air plane.", "5.000"),
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tHow?\tWhy?\t0\n",
        ("How?", "Why?", "0"),
    ),
    "mnli": (
        "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label\n0\t3n\ta\tb\tneutral\tneutral\n",
        ("a", "b", "neutral"),
    ),
    "qnli": ("index\tquestion\tsentence\tlabel\n0\tq\ts\tentailment\n", ("q", "s", "entailment")),
    "rte": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n", ("a", "b", "entailment")),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", ("a", "b", "1")),
}


@pytest.mark.parametrize("task", GLUE)
def test_glue(tmp_path: Path, task: str) -> None:
    content, expected = LAYOUTS[task]
    (example,) = read_table(write(tmp_path, "dev.tsv", content), GLUE[task])
    assert example[1:] == expected


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.tsv", "", "a.tsv has no examples"),
        ("a.tsv", "label\ttext\n", "a.tsv has no examples"),
        ("a.csv", "", "a.csv has no examples"),
        ("a.jsonl", "", "a.jsonl has no examples"),
        ("a.tsv", "label\ttext\nx\ta\tb\n", "a.tsv line 2: expected 2 columns, got 3"),
        ("a.tsv", "label\ttext\nx\ta\nx\n", "a.tsv line 3: expected 2 columns, got 1"),
        ("a.tsv", "label\tsentence\nx\ta\n", "a.tsv has no column text; it has label, sentence"),
        ("a.tsv", "label\ttext\n\ta\n", "a.tsv line 2 has no label"),
        ("a.tsv", b"label\ttext\nx\t\xff\n", "line 2 of .*a.tsv is not UTF-8"),
        ("a.csv", 'label,text\nx,"a\n', "a.csv line 2: unexpected end of data"),
        ("a.jsonl", "{\n", "a.jsonl line 1 is not JSON: "),
        ("a.jsonl", "[1]\n", "a.jsonl line 1 is no JSON object with a text as 'text'"),
        ("a.jsonl", '{"text": "a", "label": true}', "line 1 is no JSON .* as 'label'"),
        ("a.jsonl", '{"text": 1, "label": "x"}', "line 1 is no JSON object with a text as 'text'"),
        ("a.jsonl", '{"text": "\\ud800", "label": "x"}', "line 1: .* U\\+D800, half of"),
        ("a.csv", "text,label,text\nx,a,b\n", "a.csv has 2 columns text"),
        ("a.txt", "x", "a.txt: a table must be .tsv, .csv or .jsonl"),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, content: str | bytes, told: str) -> None:
    with pytest.raises(CheckpointError, match=told) as caught:
        read_table(write(tmp_path, name, content), Columns())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [lambda p: read_table(p, Columns()), read_conll, read_squad])
def test_a_file_that_is_not_there(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*a.tsv: No such file or directory$"):
        read(tmp_path / "a.tsv")
    (tmp_path / "a.tsv").mkdir()
    with pytest.raises(CheckpointError, match="a.tsv is a directory"):
        read(tmp_path / "a.tsv")


def test_numbers() -> None:
    rows = [Labelled("f line 2", "a", None, label) for label in ("1", "-2.5", "1e3")]
    assert numbers(rows) == [1.0, -2.5, 1000.0]
    for label in ("x", "nan", "inf", ""):
        with pytest.raises(
            CheckpointError, match=re.escape(f"f line 2: {label!r} is not a number")
        ):
            numbers([*rows, Labelled("f line 2", "a", None, label)])


def test_conll(tmp_path: Path) -> None:
    content = (
        "-DOCSTART- -X- O O\n\nU.N. NNP I-NP I-ORG\nofficial NN I-NP O\n\n\nEkeus NNP I-NP I-PER"
    )
    first, second = read_conll(write(tmp_path, "a", content))
    assert (first.words, first.tags) == (["U.N.", "official"], ["I-ORG", "O"])
    assert (second.words, second.tags) == (["Ekeus"], ["I-PER"])
    assert first.place(1).endswith("a line 4")
    assert second.place(0).endswith("a line 7")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "a has no examples"),
        ("\n\n-DOCSTART- O\n", "a has no examples"),
        ("word\n", "a line 1: expected 2 columns, got 1"),
        ("a b O\n\nc O\n", "a line 3: expected 3 columns, got 2"),
        (b"a O\n\xff O\n", "line 2 of .*a is not UTF-8"),
    ],
)
def test_bad_columns(tmp_path: Path, content: str | bytes, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        read_conll(write(tmp_path, "a", content))


def squad(**changes: Any) -> dict[str, Any]:
    """A file of one question."""
    question = {
        "id": "q1",
        "question": "Who?",
        "answers": [{"text": "cat", "answer_start": 4}, {"text": "The cat", "answer_start": 0}],
        **changes,
    }
    return {
        "data": [{"title": "t", "paragraphs": [{"context": "The cat sat.", "qas": [question]}]}]
    }


def test_squad(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (question,) = read_squad(write(tmp_path, "a", json.dumps(squad())))
    assert question == Question(
        f"{tmp_path / 'a'} data[0] paragraphs[0] qas[0]",
        "q1",
        "Who?",
        "The cat sat.",
        [("cat", 4), ("The cat", 0)],
    )
    (question,) = read_squad(
        write(tmp_path, "a", json.dumps(squad(answers=[], is_impossible=True)))
    )
    assert question.answers == []
    assert caplog.messages == []
    changed = squad(
        answers=[{"text": "cat", "answer_start": 5}, {"text": "sat", "answer_start": 8}]
    )
    with caplog.at_level(logging.WARNING):
        (question,) = read_squad(write(tmp_path, "a", json.dumps(changed)))
    assert question.answers == [("sat", 8)]
    assert "left out 1 answers that do not stand" in caplog.text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "a is not a readable JSON file: it is empty"),
        ("<html>", "a is not a readable JSON file: it is a web page"),
        ("[]", "a has no 'data' of the kind list, as SQuAD has"),
        ('{"data": []}', "a has no examples"),
        ('{"data": [{"paragraphs": 1}]}', r"a data\[0\] has no 'paragraphs' of the kind list"),
        (json.dumps(squad(id=7)), r"qas\[0\] has no 'id' of the kind str"),
        (json.dumps(squad(question="\udfff")), r"qas\[0\]: .* U\+DFFF, half of a surrogate pair"),
        (json.dumps(squad(answers=None)), r"qas\[0\] has no 'answers' of the kind list"),
        (json.dumps(squad(answers=[])), r"qas\[0\]: 0 answers with is_impossible False"),
        (json.dumps(squad(is_impossible=True)), r"qas\[0\]: 2 answers with is_impossible True"),
        (json.dumps(squad(answers=[{"text": "x"}])), r"answers\[0\] has no 'answer_start' of"),
    ],
)
def test_bad_squad(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        read_squad(write(tmp_path, "a", content))
