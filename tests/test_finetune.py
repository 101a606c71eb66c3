"""scripts/finetune.py and its metrics: each task from files to a folder that others load."""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ODD, PIECES, ROOT, write_folder

from minibert.loading import load
from minibert.model import BertModel

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def finetune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run scripts/finetune.py in this process; gives its status and what it printed."""
    pytest.importorskip("seqeval", reason="needs the extra train")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = import_module("finetune")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, arguments)])
        status, told = 0, ""
        try:
            script.main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
            told = "" if isinstance(stop.code, int) else f"{stop.code}\n"
        printed = capsys.readouterr()
        return status, printed.out, printed.err + told

    return run


def finetune_alone(
    *arguments: object, processes: int = 1, kill_at: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run it in processes of its own, on one thread; kill it when its log has so many lines."""
    pytest.importorskip("seqeval", reason="needs the extra train")
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, str(ROOT / "scripts" / "finetune.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    log = Path(str(arguments[3])) / "run" / "log.jsonl"
    with subprocess.Popen(command, env=environment, **pipes) as process:
        while kill_at and process.poll() is None:
            if log.exists() and log.read_bytes().count(b"\n") >= kill_at:
                process.kill()
            time.sleep(0.005)
        out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def words(number: int) -> list[str]:
    """A sentence of a made-up language, of one to nine words."""
    draw = random.Random(number)
    return [draw.choice(PIECES[5:8] + PIECES[11:]) for _ in range(draw.randint(1, 9))]


def write_task(folder: Path, task: str) -> list[Path]:
    """Files in which the label can be told from the words alone."""
    paths = []
    for part, count in (("train", 120), ("dev", 40)):
        sentences = [words(1000 * len(paths) + n) for n in range(count)]
        if task == "tag":
            text = "".join(
                "".join(f"{w} {'B-X' if w == 'the' else 'O'}\n" for w in row) + "\n"
                for row in sentences
            )
        elif task == "answer":
            rows = [["am"] + [w if w != "the" else "i" for w in row] + ["the"] for row in sentences]
            paragraphs = [
                {
                    "context": " ".join(row),
                    "qas": [
                        {
                            "id": f"{n}",
                            "question": "the",
                            "answers": [
                                {"text": "the", "answer_start": len(" ".join(row[:-1])) + 1}
                            ],
                        }
                    ],
                }
                for n, row in enumerate(rows)
            ]
            text = json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]})
        else:
            label = {"classify": lambda row: "the" in row, "regress": lambda row: row.count("the")}
            text = "label\ttext\n"
            text += "".join(f"{label[task](row)}\t{' '.join(row)}\n" for row in sentences)
        paths.append(folder / f"{part}.{task}{'' if task in ('tag', 'answer') else '.tsv'}")
        paths[-1].write_text(text)
    return paths


@pytest.fixture
def beginner(tmp_path: Path) -> Path:
    """A model that starts as BERT did."""
    torch.manual_seed(0)
    return write_folder(tmp_path / "model", BertModel(ODD).eval())


QUICK = ("--learning-rate", "3e-3", "--batch-size", "12", "--epochs", "6")
CLASSES = {
    "classify": "BertForSequenceClassification",
    "regress": "BertForSequenceClassification",
    "tag": "BertForTokenClassification",
    "answer": "BertForQuestionAnswering",
}


@pytest.mark.parametrize(
    ("task", "metric"),
    [("classify", "accuracy"), ("regress", "pearson"), ("tag", "f1"), ("answer", "exact")],
)
def test_finetune(finetune: Run, beginner: Path, tmp_path: Path, task: str, metric: str) -> None:
    """Each task is learnt, and transformers reads what was saved, with equal logits."""
    transformers = pytest.importorskip("transformers")
    output = tmp_path / "out"
    status, out, err = finetune(
        task,
        *write_task(tmp_path, task),
        output,
        "--model",
        beginner,
        *(["--stride=2"] if task == "answer" else []),
        *QUICK,
        "--plot",
    )
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["step"] == 60
    assert found[metric] > 0.8
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    bert = load(output / "model", head="auto")
    theirs = getattr(transformers, CLASSES[task]).from_pretrained(output / "model").double()
    ids = torch.tensor([bert.tokenizer.encode("i am the walrus").input_ids])
    with torch.inference_mode():
        ours = bert.head.double()(bert.model.double()(ids))
        answer = theirs(ids)
    if task == "answer":
        expected = torch.stack([answer.start_logits, answer.end_logits], -1)
    else:
        expected = answer.logits
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("finetune")
@pytest.mark.parametrize(
    ("may_be_none", "nulls", "is_none"),
    [(True, (9, 5), True), (True, (9, 1), False), (True, (1, 9), False), (False, (9, 9), False)],
)
def test_no_answer_must_win_in_each_window(
    beginner: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    may_be_none: bool,
    nulls: tuple[int, int],
    is_none: bool,
) -> None:
    """[D18] section 4.3; and where no question of the training is without an answer, none is."""
    script = import_module("finetune")
    context = "i am the walrus i am the"  # 7 + 1 pieces: windows of 6 and of 2
    right = {"answers": [{"text": "am", "answer_start": 2}]}
    none: dict[str, object] = {"answers": [], "is_impossible": True}
    for name, asked in (("train", [right, none][: 1 + may_be_none]), ("dev", [none])):
        rows = [{"id": str(n), "question": "a", **row} for n, row in enumerate(asked)]
        data = {"data": [{"paragraphs": [{"context": context, "qas": rows}]}]}
        (tmp_path / name).write_text(json.dumps(data))

    def predict(_: object, features: list[Any]) -> list[Any]:
        assert len(features) == 2
        said = [np.zeros((len(feature.input_ids), 2), np.float32) for feature in features]
        for logits, null in zip(said, nulls, strict=True):
            logits[0] = null / 2  # [CLS]
            logits[3] = 2.0  # the first piece of the context: a span of 4
        return said

    monkeypatch.setattr(script, "predict", predict)
    paths = {"train": tmp_path / "train", "dev": tmp_path / "dev"}
    options = argparse.Namespace(**paths, max_length=10, stride=0)
    found = script.answer(load(beginner), options).evaluate(None)
    assert found == {"exact": is_none, "f1": is_none}


def test_finetune_killed(beginner: Path, tmp_path: Path) -> None:
    """With dropout: the same log and weights, bit for bit."""
    paths = write_task(tmp_path, "classify")
    options = ("--model", beginner, "--save-every", "4", "--evaluate-every", "6", *QUICK)
    finetune_alone("classify", *paths, tmp_path / "whole", *options)
    killed = finetune_alone("classify", *paths, tmp_path / "killed", *options, kill_at=29)
    assert killed.returncode == -9
    finetune_alone("classify", *paths, tmp_path / "killed", *options)
    for name in ("run/log.jsonl", "model/model.safetensors"):
        whole, killed_file = (tmp_path / run / name for run in ("whole", "killed"))
        assert whole.read_bytes() == killed_file.read_bytes(), name


def test_finetune_is_stopped_by_ctrl_c(
    finetune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = import_module("finetune")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "finetune", stop)
    status, out, err = finetune("tag", tmp_path / "a", tmp_path / "b", tmp_path / "out")
    assert (status, out, err) == (130, "", "")


def test_finetune_on_two_processes(beginner: Path, tmp_path: Path) -> None:
    paths = write_task(tmp_path, "classify")
    options = ("--model", beginner, "--accumulate", "2", *QUICK)
    finetune_alone("classify", *paths, tmp_path / "one", *options)
    result = finetune_alone("classify", *paths, tmp_path / "two", *options, processes=2)
    assert result.returncode == 0, result.stderr[-2000:]
    logs = []
    for name in ("one", "two"):
        lines = (tmp_path / name / "run" / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line).get("loss") for line in lines])
    assert len(logs[0]) == len(logs[1]) == 66
    losses = [[loss for loss in log if loss is not None] for log in logs]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_finetune_goes_on_with_the_same_run_only(
    finetune: Run, beginner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes are two parts; and weights alone do not show how many heads there are."""
    script = import_module("finetune")
    arguments = ("classify", *write_task(tmp_path, "classify"), tmp_path / "out")
    arguments += ("--model", beginner, "--batch-size", 60)
    assert finetune(*arguments, "--accumulate", 2)[0] == 0
    assert "is of another run" in finetune(*arguments)[2]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, arguments)])
    script.finetune(script.parse(), 0, 2)  # of two processes the first, here alone
    config = json.loads((beginner / "config.json").read_text())
    config["num_attention_heads"] = 1
    (beginner / "config.json").write_text(json.dumps(config))
    assert "is of another run" in finetune(*arguments, "--accumulate", 2)[2]


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_finetune_frozen(finetune: Run, beginner: Path, tmp_path: Path, task: str) -> None:
    paths = write_task(tmp_path, task)
    options = ("--model", beginner, "--frozen", "--layers=-2,-1", "--combine", "concat")
    status, out, err = finetune(task, *paths, *options)
    assert (status, err) == (0, "")
    assert json.loads(out)["f1"] > 0.8
    assert {path.name for path in tmp_path.iterdir()} == {"model", *(path.name for path in paths)}


@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        ("classify", ("--frozen", "--epochs", "5"), "--epochs plays no part in classify with --fr"),
        ("tag", ("--frozen", "--bfloat16"), "--bfloat16 plays no part in tag with --frozen"),
        ("classify", ("out", "--layers=-1"), "--layers plays no part in classify without --frozen"),
        ("tag", ("out", "--glue", "rte"), "--glue plays no part in tag without --frozen"),
        ("answer", ("out", "--label", "x"), "--label plays no part in answer without --frozen"),
        ("regress", ("out", "--stride", "9"), "--stride plays no part in regress without --fro"),
    ],
)
def test_finetune_says_which_option_plays_no_part(
    finetune: Run, tmp_path: Path, task: str, options: tuple[str, ...], told: str
) -> None:
    status, _, err = finetune(task, tmp_path / "train", tmp_path / "dev", *options)
    assert status == 2
    assert told in err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("unseen", "dev.classify.tsv line 42: the label 'Maybe' is none of those that are trained"),
        ("ragged", "train.classify.tsv line 122: expected 2 columns, got 3"),
        ("empty", "train.classify.tsv has no examples"),
        ("one class", "train.classify.tsv has one class only, 'True'"),
        ("missing", "cannot read "),
        ("twice", "train.classify.tsv has 2 columns text"),
        ("steep", "take a lower learning rate"),
        ("decay", "weight_decay"),
        ("device", "device 'abacus' cannot be used here"),
        ("nothing", "max_length 0 leaves no room"),
        ("long", "--max-length 99 is more than the 17 tokens that the model reads"),
        ("batch", "--batch-size must be more than 0"),
        ("epochs", "--epochs must be more than 0 and finite"),
        ("glue", "train.classify.tsv has no column sentence1, sentence2; it has label, text"),
    ],
)
def test_finetune_on_bad_input(
    finetune: Run, folder: Path, tmp_path: Path, change: str, told: str
) -> None:
    first, second = write_task(tmp_path, "classify")
    more: tuple[str, ...] = ()
    if change == "unseen":
        second.write_text(second.read_text() + "Maybe\tthe\n")
    elif change == "ragged":
        first.write_text(first.read_text() + "True\tthe\tthe\n")
    elif change == "empty":
        first.write_text("")
    elif change == "one class":
        first.write_text("label\ttext\nTrue\tthe\n")
    elif change == "twice":
        first.write_text("label\ttext\ttext\nTrue\tthe\ta\nFalse\ta\tthe\n")
    elif change == "missing":
        first = tmp_path / "nothing.tsv"
    else:
        more = {
            "steep": ("--learning-rate", "1e30"),
            "decay": ("--weight-decay", "nan"),
            "device": ("--device", "abacus"),
            "nothing": ("--max-length", "0"),
            "long": ("--max-length", "99"),
            "batch": ("--batch-size", "0"),
            "epochs": ("--epochs", "inf"),
            "glue": ("--glue", "rte"),
        }[change]
    status, _, err = finetune("classify", first, second, tmp_path / "out", "--model", folder, *more)
    assert status == (2 if change in ("batch", "epochs") else 1)
    assert told in err
    assert len(err.splitlines()) == 1 or status == 2  # and how it is used
    assert not (tmp_path / "out" / "model").exists()


def test_finetune_asks_for_matplotlib_before_it_trains(
    finetune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "minibert.plots", None)  # as if it could not be imported
    status, _, err = finetune("tag", tmp_path / "a", tmp_path / "b", tmp_path / "out", "--plot")
    assert status == 2
    assert "--plot needs the extra plot" in err


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("seqeval", reason="needs the extra train")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return import_module("metrics")


@pytest.mark.parametrize(
    ("expected", "predicted", "exact", "f1"),
    [
        (["the Denver Broncos"], "Denver  broncos!", 1, 1),
        (["Denver Broncos"], "Broncos", 0, 2 / 3),  # precision 1, recall 1/2
        (["Denver Broncos", "Broncos"], "Broncos", 1, 1),  # the best fit counts
        (["a b c d"], "d b x", 0, 2 * (2 / 3) * (2 / 3) / (4 / 3)),  # "a" is an article
        (["x x y"], "x x x", 0, 2 / 3),  # two x in common
        ([], "", 1, 1),
        ([], "something", 0, 0),
        (["something"], "", 0, 0),
        (["the"], "", 1, 1),  # nothing is left of it
        (["the", "x"], "", 0, 0),
        (["U.S."], "us", 1, 1),
    ],
)
def test_squad_by_hand(
    metrics: ModuleType, expected: list[str], predicted: str, exact: float, f1: float
) -> None:
    found = metrics.of_answers([expected, ["b"]], [predicted, "c"])
    assert found == pytest.approx({"exact": exact / 2, "f1": f1 / 2})


def test_metrics_by_hand(metrics: ModuleType) -> None:
    assert metrics.of_classes([1, 1, 0, 0], [1, 0, 0, 0], 2) == pytest.approx(
        {"accuracy": 0.75, "f1": 2 / 3, "matthews": 2 / 12**0.5}
    )
    assert metrics.of_classes([0, 1, 2], [0, 1, 1], 3)["macro_f1"] == pytest.approx(5 / 9)
    assert metrics.of_numbers([1, 2, 3], [2, 4, 9])["spearman"] == pytest.approx(1)
    assert metrics.of_numbers([1, 2, 3], [2, 4, 9])["pearson"] == pytest.approx(0.970725)
    assert metrics.of_numbers([1, 2], [3, 3]) == {"pearson": 0, "spearman": 0}
    tags = ("B-A", "B-B", "I-A", "O")
    found = metrics.of_tags([["B-A", "I-A", "O", "B-B"]], [["B-A", "O", "O", "B-B"]], tags)
    assert found == {"accuracy": 0.75, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert metrics.of_tags([["O", "B-A"]], [["O", "O"]], tags)["f1"] == 0
    assert metrics.of_tags([["NN", "VB"]], [["NN", "NN"]], ("NN", "VB")) == {"accuracy": 0.5}


def test_each_evaluation_has_the_same_metrics(metrics: ModuleType) -> None:
    """They follow from what is trained, not from what there is or what was said; no warnings."""
    assert metrics.of_classes([0, 1], [0, 0], 3)["macro_f1"] == pytest.approx(1 / 3)
    assert metrics.of_classes([0, 0], [0, 0], 2) == {"accuracy": 1, "f1": 0, "matthews": 0}
    assert set(metrics.of_tags([["O"]], [["O"]], ("O", "NN"))) == {"accuracy"}
    assert "f1" in metrics.of_tags([["B-A"]], [["O"]], ("B-A", "O"))
