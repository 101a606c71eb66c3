"""The programs in scripts/ that no other test runs."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import PIECES, ROOT, run_python

from minibert.loading import load

# Two nodes of one core each, and somebody who kills the first worker that is at work.
CLUSTER = """
import os, runpy, signal, sys, threading, time
from ray.cluster_utils import Cluster

def workers():
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                name = open(f"/proc/{{entry}}/cmdline").read()
            except OSError:
                continue
            if name.startswith("ray::MapWorker(MapBatches(Worker))"):
                yield int(entry), name

def kill_one():
    while True:
        for process, name in workers():
            if "submit" in name:  # at work on a block
                os.kill(process, signal.SIGKILL)
                print("killed", process, flush=True)
                return
        time.sleep(0.02)

cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1}})
cluster.add_node(num_cpus=1)
threading.Thread(target=kill_one, daemon=True).start()
sys.argv[1:] = {arguments!r} + ["--address", cluster.address]
runpy.run_path({script!r}, run_name="__main__")
import ray
print("nodes", len(ray.nodes()))
ray.shutdown()
cluster.shutdown()
"""


def test_extraction_with_ray_and_a_killed_worker(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = tmp_path / "texts"
    texts.mkdir()
    lines = [
        " ".join(PIECES[5 + n % 9] for n in range(start, start + start % 13))
        for start in range(3000)
    ]
    (texts / "a.txt").write_text("".join(f"{line}\n" for line in lines[:2000]))
    (texts / "b.txt").write_text("\r\n".join(lines[2000:]))  # and no end of line at the end
    arguments = [str(texts), str(tmp_path / "vectors"), "--model", str(folder)]
    arguments += ["--workers", "2", "--block", "50", "--unit", "token", "--layers=-1,0"]
    script = str(ROOT / "scripts" / "extract_ray.py")
    result = run_python(CLUSTER.format(arguments=arguments, script=script))
    assert result.returncode == 0, result.stderr[-2000:]
    assert "nodes 2" in result.stdout
    assert "killed" in result.stdout
    table = pq.read_table(tmp_path / "vectors")
    assert table.schema.field("vectors").type == pa.list_(pa.list_(pa.float32(), 33))
    rows = {row["id"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows == len(lines)  # nothing lost, nothing twice
    in_order = sorted(rows, key=lambda key: (key.rpartition(":")[0], int(key.rpartition(":")[2])))
    assert [rows[key]["text"] for key in in_order] == lines
    expected = load(folder).vectors(lines, [-1, 0])
    for key, vectors in zip(in_order, expected, strict=True):
        assert rows[key]["tokens"] == vectors.tokens
        assert np.abs(np.array(rows[key]["vectors"]) - vectors.vectors).max() < 1e-5


def test_senses(tmp_path: Path, folder: Path) -> None:
    """A made-up language in which the word that follows tells the sense."""
    path = tmp_path / "senses.tsv"
    rows = ["word\tlabel\tsentence_a\tsentence_b"]
    for n in range(40):
        word, label = ("a", "i", "the", "wa", "walrus")[n % 5], ("same", "different")[n % 2]
        rows.append(f"{word}\t{label}\t{word} b\t{word} {'b' if label == 'same' else 'am'}")
    path.write_text("\n".join(rows))
    script = str(ROOT / "scripts" / "senses.py")
    command = [sys.executable, script, str(path), "--model", str(folder)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = printed.splitlines()
    assert lines[0].endswith("40 pairs, 50.0% in the same sense")
    accuracy = {line[:31].strip(): float(line[31:].split("%")[0]) for line in lines[1:]}
    assert accuracy["state 0"] <= 60  # before any layer the word is the same
    assert accuracy["state 1"] >= 90


@pytest.mark.usefixtures("minilm_folder")
def test_the_walkthrough_agrees_at_every_step() -> None:
    script = ROOT / "scripts" / "walkthrough.py"
    command = [sys.executable, str(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    steps = re.findall(r"^(\d+)\. ", result.stdout, re.MULTILINE)
    assert steps == [str(number) for number in range(1, 12)]
    assert result.stdout.count("as minibert, ") == 18
    cells = re.split(r"^# %%(.*)$", script.read_text(), flags=re.MULTILINE)
    assert cells[0] == ""
    assert set(cells[1::2]) == {"", " [markdown]"}


@pytest.mark.usefixtures("minilm_folder")
def test_the_walkthrough_stops_where_the_library_is_wrong() -> None:
    code = f"""
import runpy
import torch
torch.nn.GELU.forward = lambda self, x: torch.nn.functional.gelu(x, approximate="tanh")
runpy.run_path({str(ROOT / "scripts" / "walkthrough.py")!r})
"""
    result = run_python(code)
    assert result.returncode == 1
    assert re.fullmatch(r"state 1: differs by [\d.]+e-04, more than 1e-12\n", result.stderr)


@pytest.fixture
def exercises(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("exercises")


def solve(number: int, copy: Path, exercises: ModuleType) -> None:
    """Put the library's own functions back."""
    for hole in exercises.EXERCISES[number].holes:
        name = f"{hole.partition('.')[0]}.py"
        shutil.copy(ROOT / "minibert" / name, copy / "minibert" / name)


# A wrong answer to each exercise that somebody will give: a file, what stands in the library's,
# what in the answer; and what the learner is told.
WRONG = [
    (
        1,
        "encoder.py",
        "value, attn_mask=bias)",
        "value, attn_mask=bias, scale=1.0)",
        r"not yet, 1 of 6 are right: two sentences\n"
        r"  \d+ of 420 numbers differ, .*: expected \S+, got \S+, "
        r"as a missing 1/sqrt\(D\) would give",
    ),
    (
        2,
        "encoder.py",
        '"none" if name == "gelu" else "tanh"',
        '"tanh"',
        r"not yet, 3 of 4 are right: hidden_act 'gelu'\n  .*, as the tanh GELU would give",
    ),
    (
        3,
        "embeddings.py",
        "self.dropout(self.norm(summed))",
        "summed",
        r"not yet, 0 of 4 are right: one token in segment 0\n  60 of 60 numbers differ, .*",
    ),
    (
        4,
        "model.py",
        "torch.finfo(dtype).min / 2",
        "-torch.inf",
        r"not yet, 2 of 6 are right: no NaN where all is padding\n  .*: expected 0.25, got nan",
    ),
    (
        5,
        "wordpiece.py",
        "end, self._insides",
        "end, self._starts",
        r"not yet, 2 of 7 are right: 'unable' of .*\n  expected \[1, 3\], got \[1, 10\]",
    ),
    (
        6,
        "vectors.py",
        "first < end and last > start",
        "first <= end and last >= start",
        r"not yet, 1 of 6 are right: of 'walrus'\n  3 of 3 numbers differ, .*",
    ),
    (
        7,
        "vectors.py",
        "state.float() if state.dtype.itemsize < 4 else state",
        "state",
        r"not yet, 7 of 8 are right: the sum of four in float16\n"
        r"  expected dtype torch.float32, got torch.float16",
    ),
    (
        8,
        "hooks.py",
        "stack.callback(placed[-1][1].remove)",
        "pass",
        r"not yet, 3 of 7 are right: after the block, another pass changes nothing\n  .*",
    ),
    (
        9,
        "heads.py",
        "word if head.tied else nn.Embedding(*word.weight.shape)",
        "nn.Embedding(*word.weight.shape)",
        r"not yet, 2 of 4 are right: and after the word embedding has changed\n"
        r"  3 of 87 numbers differ, .*",
    ),
    (
        10,
        "mistakes.py",
        "layer.attention(layer.attention_norm(hidden_states), bias)",
        "layer.attention_norm(layer.attention(hidden_states, bias))",
        r"not yet, 0 of 3 are right: one pre-LN layer\n  420 of 420 numbers differ, .*",
    ),
]


def test_there_are_ten_exercises(exercises: ModuleType) -> None:
    assert list(exercises.EXERCISES) == [case[0] for case in WRONG] == list(range(1, 11))


@pytest.mark.parametrize("case", WRONG, ids=lambda case: str(case[0]))
def test_an_exercise(
    case: tuple[int, str, str, str, str],
    exercises: ModuleType,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    number, name, right, wrong, told = case
    copy = tmp_path / str(number)
    exercises.prepare(number, copy)
    printed = capfd.readouterr().out
    for hole in exercises.EXERCISES[number].holes:
        assert hole.partition(".")[2] in printed
    assert exercises.check(number, copy, 60) == 1
    empty = rf"not yet: NotImplementedError: exercise {number}: write \S+\n  at \S+\.py:\d+\n"
    assert re.fullmatch(empty, capfd.readouterr().out)
    solve(number, copy, exercises)
    assert exercises.check(number, copy, 60) == 0
    assert capfd.readouterr().out.startswith(f"exercise {number} is solved; ")
    path = copy / "minibert" / name
    assert path.read_text().count(right) == 1
    path.write_text(path.read_text().replace(right, wrong))
    assert exercises.check(number, copy, 60) == 1
    assert re.fullmatch(told + "\n", capfd.readouterr().out)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("while True: pass", "not yet: no answer after 5 seconds; is there a loop without an end?"),
        ("raise SystemExit(0)", "not yet: it ended with status 0"),
        ("return None", "not yet: TypeError: 'NoneType' object is not iterable"),
        (
            "return word.x",
            "not yet: AttributeError: 'str' object has no attribute 'x'\n  at FILE:LINE",
        ),
        ("return (", "not yet: SyntaxError: '(' was never closed\n  at FILE:LINE"),
    ],
)
def test_an_answer_that_does_not_run(
    answer: str,
    told: str,
    exercises: ModuleType,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    exercises.prepare(5, tmp_path / "5")
    path = tmp_path / "5" / "minibert" / "wordpiece.py"
    hole = 'raise NotImplementedError("exercise 5: write WordPieces._match")'
    assert path.read_text().count(hole) == 1
    line = path.read_text().partition(hole)[0].count("\n") + 1
    path.write_text(path.read_text().replace(hole, answer))
    capfd.readouterr()
    assert exercises.check(5, tmp_path / "5", 5 if "while" in answer else 60) == 1
    printed = capfd.readouterr().out
    assert printed.replace(f"{path}:{line}", "FILE:LINE").startswith(told), printed


def test_a_copy_is_never_judged_by_itself(exercises: ModuleType, tmp_path: Path) -> None:
    exercises.prepare(3, tmp_path / "3")
    script = ROOT / "scripts" / "exercises.py"
    command = [sys.executable, str(script), "3", "--check", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "3")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "is a learner's copy, not the library; take it off PYTHONPATH" in result.stderr


def test_the_command_runs_in_the_environment_of_the_others(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "scripts" / "install").write_text("#!/bin/sh\n")  # as if all were there already
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    command = [str(tmp_path / "scripts" / "exercise")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.count("\n") == 10
    assert printed.startswith(" 1  Self-attention")


def test_an_exercise_is_never_overwritten(
    exercises: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["exercise", *arguments, "--folder", str(tmp_path)])
        try:
            return exercises.main()  # type: ignore[no-any-return]
        except SystemExit as error:
            return int(error.code or 0)

    assert ask("3", "--check") == 2
    assert "is not there; scripts/exercise 3 makes it" in capsys.readouterr().err
    assert ask("3") == 0
    (tmp_path / "3" / "minibert" / "embeddings.py").write_text("my work")
    assert ask("3") == 2
    assert "is there already, with your work" in capsys.readouterr().err
    assert (tmp_path / "3" / "minibert" / "embeddings.py").read_text() == "my work"
    assert ask("--check") == 2
    assert ask() == 0
    assert capsys.readouterr().out.count("\n") == 10


def test_pictures_are_drawn_by_the_commands_of_the_readme(tmp_path: Path) -> None:
    """Byte by byte, but for the version of matplotlib that it is drawn with."""
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import pictures
    finally:
        sys.path.pop(0)
    readme = (ROOT / "README.md").read_text()
    for name, command in pictures.COMMANDS.items():
        # Flags may stand in another order.
        lines = [line for line in readme.splitlines() if line.startswith("$ minibert ")]
        words = [set(shlex.split(line.removeprefix("$ minibert "))) for line in lines]
        assert any(set(command) <= line for line in words), name
    drawn = pictures.draw(pictures.COMMANDS["attention.svg"], tmp_path / "attention.svg")
    stored = (pictures.FOLDER / "attention.svg").read_text()
    version = "Matplotlib v"
    assert re.sub(version + "[^,]*", "", drawn.read_text()) == re.sub(version + "[^,]*", "", stored)
