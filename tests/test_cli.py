import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import on_a_terminal, random_bert_with, run_python
from safetensors.torch import load_file, save_file

import minibert
from minibert.bundle import record
from minibert.cli import main
from minibert.saving import save

COMMAND = str(Path(sys.executable).parent / "minibert")  # as pip installed it


@pytest.fixture
def model(folder: Path) -> str:
    return str(folder)


def test_tokenize(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "--model", model, "I am the walrus.", "A [MASK] b"]) == 0
    assert capsys.readouterr().out == "i am the wa ##l ##rus .\na [MASK] b\n"
    assert main(["tokenize", "--model", model, "--", "--layers", "a"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["tokenize", "--model", model, "a", "--revision", "v1"]) == 2  # never ignored


def test_tokenize_explains_itself(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "--model", model, "--trace", "Wälrus 中文"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["text", "Wälrus 中文"] in lines
    assert ["accents", "stripped  Walrus  中  文 "] in lines
    assert lines[-3][1].startswith("walrus: (walrus) (walru) (walr) (wal) wa, (##lrus)")
    assert main(["tokenize", "--model", model, "--json", "I am"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["tokens"] == ["[CLS]", "i", "am", "[SEP]"]
    assert record["input_ids"] == [2, 5, 6, 3]
    assert record["offsets"] == [[0, 0], [0, 1], [2, 4], [0, 0]]
    assert record["word_ids"] == [None, 0, 1, None]


@pytest.fixture
def with_heads(tmp_path: Path) -> str:
    save(random_bert_with("pretraining"), tmp_path / "with_heads")
    return str(tmp_path / "with_heads")


def test_fill(with_heads: str, capsys: pytest.CaptureFixture[str]) -> None:
    bert = minibert.load(with_heads, head="masked-lm")
    texts = ["I am the [MASK].", "[MASK] b [MASK]"]
    assert main(["fill", "--model", with_heads, *texts, "--top-k", "3"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["text"] == texts[0]
    assert [len(record["masks"]) for record in (first, second)] == [1, 2]
    best = bert.fill(texts[0])[0].candidates
    assert [row["token"] for row in first["masks"][0]["candidates"]] == [c.token for c in best[:3]]
    command = ["fill", "--model", with_heads, *texts, "--targets", "walrus,a"]
    table = on_a_terminal(COMMAND, *command)
    rows = [row.split() for row in table.split("\n")[:-1]]
    assert [len(row) > 0 for row in rows] == [True, True, False, True, True, False, True, True]
    assert {rows[0][1], rows[1][1]} == {"walrus", "a"}
    ranked = bert.fill(texts[0], targets=["walrus", "a"])[0].candidates
    assert table.startswith(f"{ranked[0].probability:.6f}  {ranked[0].token:6}  I am the ")
    assert json.loads(on_a_terminal(COMMAND, "fill", "--json", *command[1:]).split("\n")[1])


def test_next(with_heads: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = minibert.load(with_heads, head="next-sentence").next_sentence("I am", "a ||| b.")
    command = ["next", "--model", with_heads]
    assert main([*command, "I am", "a ||| b."]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == {"first": "I am", "second": "a ||| b.", "follows": pytest.approx(expected)}
    assert on_a_terminal(COMMAND, *command, "a", "b").endswith("  a ||| b\n")
    (tmp_path / "pairs").write_text("a ||| b\nI am ||| the walrus\n")
    assert main([*command, "--input", str(tmp_path / "pairs")]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["first"], record["second"]) for record in records] == [
        ("a", "b"),
        ("I am", "the walrus"),
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["fill", "a"], 2, "there is no [MASK] in 'a'"),
        (["fill"], 2, "give either TEXT or --input FILE"),
        (["fill", "[MASK]", "--top-k", "0"], 2, "top_k must be from 1 to 14, got 0"),
        (
            ["fill", "[MASK]", "--targets", "a,"],
            2,
            "the target '' has no pieces in this vocabulary",
        ),
        (["fill", "[MASK]", "--model", "minilm"], 1, "has no masked-lm head: load another, or"),
        (["next", "a"], 2, "give two TEXTs, got 1"),
        (["next", "a", "b", "a"], 2, "give two TEXTs, got 3"),
        (["next", "a", ""], 2, "a text of the pair ('a', '') has no token"),
        (["next", "--input", "{tmp}/text"], 2, "expected a pair, A ||| B, got 'a b'"),
        (["next", "a", "b " * 20], 2, "text 1 has 24 tokens, more than the 17 that this model"),
        (["next", "a", "b", "--model", "minilm"], 1, "has no next-sentence head: load another"),
    ],
)
@pytest.mark.usefixtures("minilm_folder")
def test_heads_in_one_line(
    arguments: list[str],
    status: int,
    says: str,
    with_heads: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text").write_text("a b\n")
    command = [arguments[0], "--model", with_heads, *arguments[1:]]
    assert main([part.format(tmp=tmp_path) for part in command]) == status
    captured = capsys.readouterr()
    assert says in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_extract_on_a_pipe_is_jsonl(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract", "--model", model, "I am", "a", "--layers", "-1,-2,0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["linex_index"] for record in records] == [0, 1]
    layers = records[0]["features"][0]["layers"]
    assert [layer["index"] for layer in layers] == [-1, -2, 0]
    assert len(layers[0]["values"]) == 33
    assert main(["extract", "--model", model, "I am", "a", "--layers=-1,-2,0"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_extract_on_a_terminal_is_a_table(model: str) -> None:
    for columns in (80, 40):
        table = on_a_terminal(
            COMMAND, "extract", "--model", model, "I am", columns=columns
        ).splitlines()
        assert table[0] == "layer -1: 4 tokens, 33 numbers each"
        assert [row.split()[0] for row in table[1:]] == ["[CLS]", "i", "am", "[SEP]"]
        assert all(columns - 10 < len(row) <= columns for row in table[1:])
    jsonl = on_a_terminal(COMMAND, "extract", "--model", model, "I am", "--format", "jsonl")
    assert json.loads(jsonl)["linex_index"] == 0


def test_table_on_request(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract", "--model", model, "a", "--format", "table"]) == 0
    assert capsys.readouterr().out.startswith("layer -1: 3 tokens")


def test_dtype_and_max_length(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["extract", "--model", model, "a b a b", "--max-length", "3"]
    outputs = []
    for dtype in ("float32", "float64", "bfloat16"):
        assert main([*arguments, "--dtype", dtype]) == 0
        (record,) = map(json.loads, capsys.readouterr().out.splitlines())
        assert [feature["token"] for feature in record["features"]] == ["[CLS]", "a", "[SEP]"]
        outputs.append(record["features"][1]["layers"][0]["values"])
    single, double, half = outputs
    assert max(abs(a - b) for a, b in zip(single, double, strict=True)) < 1e-5
    assert 1e-4 < max(abs(a - b) for a, b in zip(single, half, strict=True)) < 0.5


def test_input_from_a_file(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text"
    path.write_bytes("I am\r\n\na\u2028b".encode())
    assert main(["tokenize", "--model", model, "--input", str(path)]) == 0
    assert capsys.readouterr().out == "i am\n\na b\n"


def test_input_from_a_pipe(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"I am\nthe walrus\n")))
    assert main(["extract", "--model", model, "--input", "-"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(record["features"]) for record in records] == [4, 6]


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["a", "--model", "{tmp}/none"], 1, "there is no folder '{tmp}/none'"),
        (["a", "--model", "{model}", "--layers", "99"], 2, "there is no layer 99"),
        (["a", "--model", "{model}", "--revision", "v1"], 2, "goes with a model of the Hub"),
        (["a", "--model", "{model}", "--device", "gpu"], 2, "device 'gpu' cannot be used here"),
        (["a", "--model", "{model}", "--device", "meta"], 2, "device 'meta' cannot be used here"),
        (["a " * 20, "--model", "{model}"], 2, "22 tokens are more than the 17 positions"),
        (["a", "--model", "{model}", "--max-length", "1"], 2, "max_length 1 leaves no room"),
        (["--model", "{model}"], 2, "give either TEXT or --input FILE"),
        (["a", "--input", "-", "--model", "{model}"], 2, "give either TEXT or --input FILE"),
        (["--input", "{tmp}/none", "--model", "{model}"], 1, "cannot read {tmp}/none: No such"),
        (["--input", "{tmp}", "--model", "{model}"], 1, "cannot read {tmp}: Is a directory"),
        (["--input", "{tmp}/latin", "--model", "{model}"], 1, "line 2 of {tmp}/latin is not UTF-8"),
    ],
)
def test_one_line_for_what_can_be_mended(
    arguments: list[str],
    status: int,
    says: str,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "latin").write_bytes(b"a\ncaf\xe9\n")
    places = {"model": model, "tmp": str(tmp_path)}
    assert main(["extract", *(argument.format(**places) for argument in arguments)]) == status
    error = capsys.readouterr().err
    assert error.startswith("minibert: ")
    assert says.format(**places) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "minibert: error: the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (
            ["extract", "a", "--layers", "x"],
            "minibert extract: error: argument --layers: expected numbers such as -1,-2, got 'x'",
        ),
        (["extract", "a", "--layers"], "argument --layers: expected one argument"),
        (["extract", "a", "--dtype", "int8"], "argument --dtype: invalid choice"),
        (["extract", "a", "--layer", "-1"], "unrecognized arguments: --layer -1"),
        (["extract", "a", "--layers", "--"], "argument --layers: expected one argument"),
        (["tokenize", "a", "--json", "--trace"], "not allowed with argument"),
        (["extract", "a", "--nothing"], "unrecognized arguments: --nothing"),
        (["lens", "a", "-o", ""], "argument -o/--output: expected a name, got ''"),
        (["plot", "layers", "a", "-o", ""], "argument -o/--output: expected a name, got ''"),
        (["extract", "--input", "a", "--output", ""], "argument --output: expected a name, got ''"),
        (["compare", "a", "--input", ""], "argument --input: expected a name, got ''"),
        (["record", ""], "argument FOLDER: expected a name, got ''"),
        (["judge", "a", ""], "argument DUMP: expected a name, got ''"),
    ],
)
def test_one_line_for_wrong_use(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [["lens", "-o", "{tmp}/a.html"], ["compare", "a"]])
def test_an_input_without_a_text_is_named(
    command: list[str], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    given = [*command, "--input", "{tmp}/empty", "--model", model]
    assert main([argument.format(tmp=tmp_path) for argument in given]) == 2
    assert capsys.readouterr().err == f"minibert: {tmp_path}/empty has no text\n"
    assert not (tmp_path / "a.html").exists()


def test_the_hub_out_of_reach_is_one_line(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_CACHE": str(tmp_path),
    }
    command = [COMMAND, "extract", "I am the walrus."]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert result.stdout == ""  # never another model instead
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("minibert: config.json of google-bert/bert-base-uncased is not")
    assert (
        "what works without it: a folder with the model's files, or --model minilm" in result.stderr
    )


def test_help_says_what_layers_mean(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["extract", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "0 is the embedding output, 1 the first layer (where Google's script says 0)" in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == "minibert 0.1.0\n"


@pytest.mark.parametrize(
    ("redirection", "says"), [("<&-", "the input is closed"), (">&-", "the output is closed")]
)
def test_closed_streams(model: str, redirection: str, says: str) -> None:
    result = subprocess.run(
        ["sh", "-c", f"{COMMAND} tokenize --model {model} --input - {redirection}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--help"], ["names"], ["tokenize", "--model", "{model}", "I am"]]
)
def test_what_needs_no_tensor_imports_no_torch(arguments: list[str], model: str) -> None:
    arguments = [argument.format(model=model) for argument in arguments]
    result = run_python(f"""
import sys
import time
from minibert.cli import main
try:
    main({arguments!r})
finally:
    print(sorted({{"torch", "numpy", "transformers", "safetensors"}} & set(sys.modules)))
""")
    assert result.stdout.endswith("\n[]\n"), result


def test_output_that_nobody_reads(tmp_path: Path, model: str) -> None:
    path = tmp_path / "text"
    path.write_text("a\n" * 100_000)  # more than a pipe holds
    command = f"{COMMAND} tokenize --model {model} --input {path}"
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -n 1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (141, "a\n", "")


def test_interrupt(model: str) -> None:
    command = [COMMAND, "tokenize", "--model", model, "--input", "-"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job with & ignores it
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("a\n" * 10_000)  # more than is buffered, less than fills a pipe
        process.stdin.flush()
        assert process.stdout.readline() == "a\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "")


def test_public_names() -> None:
    assert sorted(minibert.__all__) == [name for name in dir(minibert) if name in minibert.__all__]
    for name in minibert.__all__:
        assert getattr(minibert, name).__module__.startswith("minibert.")
    with pytest.raises(AttributeError, match="module 'minibert' has no attribute 'nothing'"):
        _ = minibert.nothing


@pytest.fixture
def only_pickle(with_heads: str) -> str:
    tensors = load_file(Path(with_heads) / "model.safetensors")
    (Path(with_heads) / "model.safetensors").unlink()
    torch.save(tensors, Path(with_heads) / "pytorch_model.bin")
    return with_heads


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["extract", "a"], 0),
        (["compare", "a", "a b", "b a"], 0),
        (["lens", "a", "-o", "{tmp}/page.html"], 0),
        (["plot", "layers", "a b", "-o", "{tmp}/a.svg"], 0),
        (["fill", "[MASK]"], 0),
        (["next", "a", "b"], 0),
        (["verify"], 2),  # no number is published for this model
        (["record", "{tmp}/bundle"], 0),
        (["judge", "{tmp}/mine", "{tmp}/dump.safetensors"], 1),  # they differ
        (["live"], 0),
    ],
)
def test_a_pickle_must_be_allowed(
    only_pickle: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    status: int,
) -> None:
    command = [part.format(tmp=tmp_path) for part in command]
    if command[0] == "plot":
        pytest.importorskip("matplotlib")
    if command[0] == "live":
        pytest.importorskip("transformers")
    if command[0] == "judge":
        bert = minibert.load(only_pickle, allow_pickle=True)
        record(bert.model, tmp_path / "mine")
        dump = load_file(tmp_path / "mine" / "tensors.safetensors")
        save_file({name: t + t.is_floating_point() for name, t in dump.items()}, command[2])
    command += ["--model", only_pickle]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert told.startswith("minibert: ")
    assert "--allow-pickle reads its tensors alone" in told
    assert main([*command, "--allow-pickle"]) == status
    assert "--allow-pickle" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["tokenize", "a"],
        ["extract", "a"],
        ["compare", "a", "a"],
        ["fill", "[MASK]"],
        ["next", "a", "a"],
        ["verify"],
        ["record", "{tmp}/bundle"],
        ["live"],
        ["names"],
    ],
)
def test_local_files_only(tmp_path: Path, arguments: list[str]) -> None:
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    options = ["--model", "no/such", "--local-files-only"]
    code = f"from minibert.cli import main; main({arguments[:1] + options + arguments[1:]!r})"
    result = run_python(code, HF_HUB_CACHE=str(tmp_path))
    assert "(local_files_only or HF_HUB_OFFLINE is set; the cache is" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus"
    path.write_text(
        "".join(f"{'a ' * (n % 9)}the walrus . {'b ' * (n % 4)}\n" for n in range(18_000))
    )
    return path


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_real_kill_loses_and_changes_nothing(model: str, corpus: Path, tmp_path: Path) -> None:
    def command(name: str) -> list[str]:
        options = ["--threads", "1", "--store-dtype", "float16", "--unit", "word"]
        where = ["--input", str(corpus), "--output", str(tmp_path / name)]
        return [COMMAND, "extract", "--model", model, *where, *options]

    subprocess.run(command("whole"), check=True, timeout=300)
    process = subprocess.Popen(command("killed"))
    manifest = tmp_path / "killed" / "manifest.json"
    while not manifest.exists() or json.loads(manifest.read_text())["done"]["lines"] == 0:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert json.loads(manifest.read_text())["complete"] is False
    result = subprocess.run(
        [*command("killed"), "--resume"], capture_output=True, text=True, timeout=300, check=True
    )
    assert (result.stdout, result.stderr) == ("", "")  # no progress where nobody looks
    assert read_all(tmp_path / "killed") == read_all(tmp_path / "whole")
    assert len(minibert.read_vectors(tmp_path / "killed")) == 18_000


def test_a_full_disk_is_one_line(model: str, corpus: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    command = f"{COMMAND} extract --model {model} --input {corpus} --output {tmp_path}/out.npy"
    command += " --unit sentence --threads 1"
    result = subprocess.run(
        ["bash", "-c", f"ulimit -f 2000; {command}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    says = f"minibert: cannot write {tmp_path}/out.npy: File too large; its first 8192 texts are"
    assert result.returncode == 1
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1
    subprocess.run(["sh", "-c", command], check=True, timeout=300)
    assert len(minibert.read_vectors(tmp_path / "out.npy")) == 18_000


def test_progress_is_for_people(model: str, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("a\n" * 300)
    command = f"{COMMAND} extract --model {model} --input {path} --output {tmp_path}/out 2>&1"
    printed = on_a_terminal("sh", "-c", command)
    assert "300/300 [" in printed
    assert " lines/s]" in printed
    assert on_a_terminal("sh", "-c", f"{command} | cat") == ""


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ("--input {tmp}/latin --output {tmp}/out", 1, "line 2 of {tmp}/latin is not UTF-8"),
        ("--input {tmp}/none --output {tmp}/out", 1, "cannot read {tmp}/none: No such file"),
        ("--input {tmp}/text --output {tmp}/out.csv", 2, "out.csv names no format"),
        ("--input {tmp}/text --output {tmp}/out.npy", 2, "a .npy file is for the unit sentence"),
        ("--input {tmp}/text --output {tmp}/out --resume", 2, "there is nothing to resume"),
        ("--input {tmp}/text --output {tmp}/out --layers 9", 2, "there is no layer 9"),
        ("--input {tmp}/text --output {tmp}/out --long error", 2, "line 2: 42 tokens are more"),
        ("--input {tmp}/text --output {tmp}/text/out", 1, "text/out"),
        ("--input {tmp}/text --output {tmp}/out --threads 0", 2, "--threads must be at least 1"),
        ("a --output {tmp}/out", 2, "--output goes with --input FILE"),
        ("--input {tmp}/text --limit 3", 2, "--limit goes with --output"),
        ("--input {tmp}/text --field body", 1, "line 1 of {tmp}/text is not JSON"),
    ],
)
def test_files_that_cannot_be(
    arguments: str,
    status: int,
    says: str,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "latin").write_bytes(b"a\ncaf\xe9\n")
    (tmp_path / "text").write_text("a\n" + "a " * 40 + "\n")
    command = ["extract", "--model", model, *arguments.format(tmp=tmp_path).split()]
    assert main(command) == status
    error = capsys.readouterr().err
    assert says.format(tmp=tmp_path) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists() or "--long" in arguments


def test_what_was_cut_is_counted(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("a\n" + "a " * 40 + "\n")
    where = ["--input", str(tmp_path / "text"), "--output", str(tmp_path / "out")]
    assert main(["extract", "--model", model, *where, "--long", "truncate"]) == 0
    told = "minibert: 1 of 2 texts were cut to what the model reads\n"
    assert capsys.readouterr() == ("", told)


def test_words_and_sentences_to_look_at(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["extract", "--model", model, "I am the walrus", "--layers", "-1,-2"]
    assert main([*command, "--unit", "word", "--format", "table"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "layer -1: 4 words, 33 numbers each"
    assert [row.split()[0] for row in table[1:5]] == ["I", "am", "the", "walrus"]
    assert main([*command, "--unit", "sentence", "--combine", "-1,0.5"]) == 0
    (feature,) = json.loads(capsys.readouterr().out)["features"]
    assert feature["token"] == "I am the walrus"
    assert [layer["index"] for layer in feature["layers"]] == ["-1 * (-1) + 0.5 * (-2)"]


def test_without_matplotlib_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["matplotlib"] = None  # as if it were not there
import minibert
from minibert.cli import main
print(main(["plot", "layers", "a", "-o", "a.png"]))
try:
    minibert.plot_attention
except ImportError as error:
    print(error)
"""
    told, result = "matplotlib is not installed; pip install matplotlib\n", run_python(code)
    assert (result.stdout, result.stderr) == (f"1\n{told}", f"minibert: {told}")


def test_without_matplotlib_its_tests_skip_one_by_one() -> None:
    code = """
import sys
sys.modules["matplotlib"] = None
import pytest
tests = ["tests/test_plots.py", "tests/test_pictures.py"]
status = pytest.main(["-q", "-p", "no:cacheprovider", "-k", "plots or pictures", *tests])
status += pytest.main(["-q", "-p", "no:cacheprovider", "--collect-only", "minibert"])
sys.exit(status)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stdout
    skipped = re.search(r"^(\d+) skipped in", result.stdout, re.MULTILINE)
    assert skipped is not None
    assert int(skipped[1]) > 50
