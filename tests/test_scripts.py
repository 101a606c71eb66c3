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
import torch
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
    # A head is called as by --head and on the page, where layers and heads count from 1.
    assert re.findall(r"head [\d-]+", result.stdout) == ["head 1-5"] * 2


def test_the_walkthrough_is_a_notebook() -> None:
    """Cells as jupytext and editors read them: each is all text or all code."""
    script = (ROOT / "scripts" / "walkthrough.py").read_text()
    before, *cells = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)
    assert before == ""
    for kind, cell in zip(cells[::2], cells[1::2], strict=True):
        assert kind in ("", " [markdown]")
        if kind:
            text = cell.removesuffix("\n\n")
            assert all(line.startswith("#") for line in text.splitlines()) or text[:3] == '"""'
        else:
            compile(cell, "cell", "exec")


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


# Answers that somebody will give: what stands in the library's, and what in the answer; and what
# the learner is told, or nothing if the answer is right, in another way.
ANSWERS: dict[str, tuple[int, dict[str, str], str]] = {
    "written out, always": (
        1, {"self._is_observed() or is_dropped or is_slow_fused(query)": "True"},
        "",
    ),
    "dropout in the kernel": (
        1, {"self._is_observed() or is_dropped or is_slow_fused(query)": "self._is_observed()",
            "attn_mask=bias)": "attn_mask=bias, dropout_p=self.dropout.p * self.training)"},
        "",
    ),
    "no root": (
        1, {"attn_mask=bias)": "attn_mask=bias, scale=1.0)"},
        r"1 of 8 are right: two sentences\n"
        r"  \d+ of 420 numbers differ, .*: expected \S+, got \S+, "
        r"as a missing 1/sqrt\(D\) would give",
    ),
    "another root": (
        1, {"attn_mask=bias)": "attn_mask=bias, scale=self.query.out_features**-0.5)"},
        r"1 of 8 are right: two sentences\n  .*, as 1/sqrt\(H\) for 1/sqrt\(D\) would give",
    ),
    "interleaved heads": (
        1, {".view(batch, tokens, self.num_heads, -1).transpose(1, 2)":
            ".view(batch, tokens, -1, self.num_heads).permute(0, 3, 1, 2)"},
        r"0 of 8 are right: one token, .*\n  .*, as heads of every A-th column would give",
    ),
    "no transpose": (
        1, {"context.transpose(1, 2).flatten(2)": "context.reshape(hidden_states.shape)"},
        r"1 of 8 are right: two .*\n  .*, as heads joined without a transpose would give",
    ),
    "key for query": (
        1, {"self.query(hidden_states)": "self.key(hidden_states)"},
        r"1 of 8 are right: two .*\n  .*, as the key's map for the query's would give",
    ),
    "query for key": (
        1, {"self.key(hidden_states)": "self.query(hidden_states)"},
        r"1 of 8 are right: two .*\n  .*, as the query's map for the key's would give",
    ),
    "bias behind the hook": (
        1, {"self.scores(scores if bias is None else scores + bias)":
            "self.scores(scores) + (0 if bias is None else bias)"},
        r"3 of 8 are right: .* a hook on scores sees\n  .*: expected -1e\+09, got \S+",
    ),
    "no dropout of probabilities": (
        1, {"self.dropout(probabilities) @ value": "probabilities @ value"},
        r"6 of 8 are right: in training, .*\n  .*, as a missing dropout would give",
    ),
    "dropout of the context": (
        1, {"self.dropout(probabilities) @ value": "self.dropout(probabilities @ value)"},
        r"7 of 8 are right: .* a head reads a lone token twice, or not at all\n  .*",
    ),
    "tanh for erf": (
        2, {'"none" if name == "gelu" else "tanh"': '"tanh"'},
        r"4 of 5 are right: hidden_act 'gelu'\n  .*, as the tanh GELU would give",
    ),
    "erf for tanh": (
        2, {'"none" if name == "gelu" else "tanh"': '"tanh" if name == "gelu_new" else "none"'},
        r"3 of 5 are right: hidden_act 'gelu_pytorch_tanh'\n  .*, as the exact GELU would give",
    ),
    "no LayerNorm": (
        3, {"self.dropout(self.norm(summed))": "summed"},
        r"0 of 7 are right: one token in segment 0\n  60 of 60 numbers differ, .*",
    ),
    "words times sqrt(H)": (
        3, {"self.word(input_ids)": "self.word(input_ids) * 30**0.5"},
        r"0 of 7 are right: .*\n  .*, as word vectors times sqrt\(H\) would give",
    ),
    "one token too few": (
        3, {"length > most": "length >= most"},
        r"3 of 7 are right: 13 tokens, where 13 fit\n  expected 'no error', got 'ValueError'",
    ),
    "an error without a number": (
        3, {'f"{length} tokens are more than': 'f"too many tokens, as'},
        r"4 of 7 are right: 14 .*\n  .*, got 'ValueError that does not say 14'",
    ),
    "no dropout of embeddings": (
        3, {"self.dropout(self.norm(summed))": "self.norm(summed)"},
        r"5 of 7 are right: in training, .*\n  .*, as a missing dropout would give",
    ),
    "dropout before LayerNorm": (
        3, {"self.dropout(self.norm(summed))": "self.norm(self.dropout(summed))"},
        r"5 of 7 are right: in training, with everything dropped\n  .*: expected 0, got \S+",
    ),
    "everything times sqrt(H)": (
        3, {"self.norm(summed)": "self.norm(summed * 30**0.5)"},
        r"6 of 7 are right: rows so small that LayerNorm's eps shows any factor\n  .*",
    ),
    "-inf": (
        4, {"torch.finfo(dtype).min / 2": "-torch.inf"},
        r"2 of 6 are right: no NaN where all is padding\n  .*: expected 0.25, got nan",
    ),
    "starts inside": (
        5, {"end, self._insides": "end, self._starts"},
        r"2 of 7 are right: 'unable' of .*\n  expected \[1, 3\], got \[1, 10\]",
    ),
    "neighbours of a span": (
        6, {"first < end and last > start": "first <= end and last >= start"},
        r"1 of 7 are right: of 'walrus'\n  3 of 3 numbers differ, .*",
    ),
    "the first span only": (
        6, {"    return groups\n\n\ndef _pool": "    return groups[:1]\n\n\ndef _pool"},
        r"5 of 7 are right: .* a row each\n  expected shape \(\[2, 3\]\), got \(\[1, 3\]\)",
    ),
    "sums in half precision": (
        7, {"state.float() if state.dtype.itemsize < 4 else state": "state"},
        r"7 of 9 are right: the sum .*\n  expected dtype torch.float32, got torch.float16",
    ),
    "one layer in half precision": (
        7, {"mixed = wide[0]": "mixed = states[0]"},
        r"8 of 9 are right: one layer .*\n  expected dtype torch.float32, got torch.float16",
    ),
    "hooks that stay": (
        8, {"stack.callback(placed[-1][1].remove)": "pass"},
        r"3 of 15 are right: after the block, another pass changes nothing\n  .*",
    ),
    "no gradient": (
        8, {"seen._add(name, output)": "seen[name] = seen._keep(output)"},
        r"6 of 15 are right: its gradient, .*\n  expected a tensor, got no gradient of .*",
    ),
    "a graph in spite of detach": (
        8, {"_keeper(detach, to, positions)": "_keeper(False, to, positions)"},
        r"7 of 15 are right: detach=True: .*\n  expected False, got True",
    ),
    "no other dtype": (
        8, {"_keeper(detach, to, positions)": "_keeper(detach, None, positions)"},
        r"8 of 15 are right: to=.*\n  expected dtype torch.float32, got torch.float64",
    ),
    "all positions": (
        8, {"_keeper(detach, to, positions)": "_keeper(detach, to, None)"},
        r"9 of 15 are right: positions=.*\n  expected shape \(\[1, 2, 30\]\), got .*",
    ),
    "the last pass only": (
        8, {"        if all_passes:\n": "        if False:\n"},
        r"10 of 15 are right: all_passes=True: how many of two\n  expected 2, got 0",
    ),
    "a hook of all passes that stays": (
        8, {"stack.callback(model.register_forward_hook(lambda *_: seen._end()).remove)":
            "model.register_forward_hook(lambda *_: seen._end())"},
        r"12 of 15 are right: how many hooks are left behind\n  expected 0, got 1",
    ),
    "an error that is swallowed": (
        8, {"        yield seen\n":
            "        try:\n            yield seen\n        except ValueError:\n            pass\n"},
        r"13 of 15 are right: an error inside .*\n  expected 'ValueError', got 'no error'",
    ),
    "hooks that stay after an error": (
        8, {"with ExitStack() as stack:": "for stack in [ExitStack()]:",
            "        yield seen\n": "        yield seen\n        stack.close()\n"},
        r"14 of 15 are right: how many hooks it leaves behind\n  expected 0, got 3",
    ),
    "never tied": (
        9, {"word if head.tied else nn.Embedding(*word.weight.shape)":
            "nn.Embedding(*word.weight.shape)"},
        r"3 of 6 are right: and after the word embedding has changed\n  3 of 87 numbers differ, .*",
    ),
    "always tied": (
        9, {"word if head.tied else nn.Embedding(*word.weight.shape)": "word"},
        r"4 of 6 are right: the same of the head that is not tied\n  3 of 87 numbers differ, .*",
    ),
    "LayerNorm after the sublayer": (
        10, {"layer.attention(layer.attention_norm(hidden_states), bias)":
             "layer.attention_norm(layer.attention(hidden_states, bias))"},
        r"0 of 5 are right: one pre-LN layer\n  420 of 420 numbers differ, .*",
    ),
    "no mask before LayerNorm": (
        10, {"attention_norm(hidden_states), bias)": "attention_norm(hidden_states), None)"},
        r"1 of 5 are right: one pre-LN layer, where a sentence is padded\n  210 of 420 .*",
    ),
    "no tolerance": (
        10, {"if not one.agrees), None": "if one.relative > 0), None"},
        r"4 of 5 are right: nor one .* the tolerance\n  expected None, got 'embeddings'",
    ),
}  # fmt: skip

# Judges copies of the package, one after the other, in a process that loads torch once.
JUDGE = """
import sys
import torch
for number, expected, copy in zip(*[iter(sys.argv[2:])] * 3):
    for name in [name for name in sys.modules if name.split(".")[0] in ("minibert", "trials")]:
        del sys.modules[name]
    sys.path[:2] = [copy, sys.argv[1]]
    import trials
    print(trials.judge(int(number), torch.load(expected)), end="\\0")
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each of ANSWERS is told."""
    folder = tmp_path_factory.mktemp("answers")
    sys.path.insert(0, str(ROOT / "scripts"))
    trials = importlib.import_module("trials")
    sys.path.pop(0)
    arguments = [str(ROOT / "scripts")]
    for number, edits, _ in ANSWERS.values():
        expected, copy = folder / f"{number}.pt", folder / str(len(arguments))
        if not expected.exists():
            torch.save(trials.run(number), expected)
        shutil.copytree(ROOT / "minibert", copy / "minibert")
        stems = {hole.partition(".")[0] for hole in trials.EXERCISES[number].holes}
        paths = [copy / "minibert" / f"{stem}.py" for stem in stems]
        for right, wrong in edits.items():
            (path,) = (path for path in paths if path.read_text().count(right) == 1)
            path.write_text(path.read_text().replace(right, wrong))
        arguments += [str(number), str(expected), str(copy)]
    command = [sys.executable, "-B", "-c", JUDGE, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return dict(zip(ANSWERS, result.stdout.split("\0")[:-1], strict=True))


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_judged(answer: str, verdicts: dict[str, str]) -> None:
    told = ANSWERS[answer][-1]
    assert re.fullmatch(f"not yet, {told}" if told else "", verdicts[answer]), verdicts[answer]


def test_there_are_ten_exercises(exercises: ModuleType) -> None:
    assert list(exercises.EXERCISES) == list(range(1, 11))
    assert {number for number, _, told in ANSWERS.values() if told} == set(range(1, 11))


@pytest.mark.parametrize("number", range(1, 11))
def test_an_exercise(
    number: int,
    exercises: ModuleType,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
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


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("while True: pass", "not yet: no answer after 5 seconds; is there a loop without an end?"),
        ("raise SystemExit(0)", "not yet: it ended with status 0"),
        ("return None", "not yet: TypeError: 'NoneType' object is not iterable"),
        ("return [7]", "not yet, 0 of 7 are right: 'a' of "),
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
