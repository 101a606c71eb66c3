import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import ODD, PIECES, random_model, run_python

from minibert import blocks
from minibert import extract as extract_module
from minibert.bert import Bert
from minibert.extract import extract, extract_file, to_table
from minibert.hooks import capture
from minibert.job import Job
from minibert.lines import survey
from minibert.shards import JsonWriter, NpyWriter, ShardWriter, to_json
from minibert.stored import read_vectors
from minibert.tokenizer import WordPieceTokenizer
from minibert.vectors import Reading


@pytest.fixture
def bert() -> Bert:
    return Bert(ODD, WordPieceTokenizer(PIECES, lowercase=True), random_model(ODD))


def test_googles_format(bert: Bert) -> None:
    lines = ["I am the walrus.", "", "  a ||| b b\t", "a ||| b ||| a"]
    extracted = list(extract(bert, lines, Reading([-1, 0, -4], "stack")))
    records = [json.loads(to_json(one)) for one in extracted]
    assert [list(record) for record in records] == [["linex_index", "features"]] * 4
    assert [record["linex_index"] for record in records] == [0, 1, 2, 3]
    tokens = [[feature["token"] for feature in record["features"]] for record in records]
    assert tokens == [
        ["[CLS]", "i", "am", "the", "wa", "##l", "##rus", ".", "[SEP]"],
        ["[CLS]", "[SEP]"],
        ["[CLS]", "a", "[SEP]", "b", "b", "[SEP]"],
        # Google's pattern is greedy: the last bar parts the texts.
        ["[CLS]", "a", "[UNK]", "[UNK]", "[UNK]", "b", "[SEP]", "a", "[SEP]"],
    ]
    feature = records[0]["features"][5]
    assert list(feature) == ["token", "layers"]
    assert [layer["index"] for layer in feature["layers"]] == [-1, 0, -4]
    assert [list(layer) for layer in feature["layers"]] == [["index", "values"]] * 3


def test_the_values_are_those_of_the_states(bert: Bert) -> None:
    encoding = bert.tokenizer.encode("a", "b")
    with torch.inference_mode(), capture(bert.model, "hidden_states") as seen:
        bert.model(torch.tensor([encoding.input_ids]), torch.tensor([encoding.token_type_ids]))
    layers = [*range(4), *range(-4, 0)]
    (extracted,) = extract(bert, ["a ||| b"], Reading(layers, "stack"))
    features = json.loads(to_json(extracted))["features"]
    for position, feature in enumerate(features):
        for layer in feature["layers"]:
            state = seen.hidden_states[layer["index"]][0, position]
            assert layer["values"] == [round(value, 6) for value in state.tolist()]
    # Negative numbers count the same tensors from the end.
    assert features[1]["layers"][0]["values"] == features[1]["layers"][4]["values"]
    assert json.dumps(json.loads(to_json(extracted))) == to_json(extracted)


@pytest.mark.parametrize("layer", [4, -5, 99])
def test_layers_that_do_not_exist(bert: Bert, layer: int) -> None:
    says = f"there is no layer {layer}: .* 0 .the embedding output. to 3 .*, or -4 to -1"
    with pytest.raises(ValueError, match=says):
        next(extract(bert, ["a"], Reading([0, layer], "stack")))


def test_texts_that_are_too_long(bert: Bert) -> None:
    with pytest.raises(ValueError, match="line 2: 18 tokens are more than the 17 positions"):
        list(extract(bert, ["a", "a " * 16], Reading()))
    (extracted,) = extract(bert, ["a " * 16], Reading(), max_length=17)
    assert extracted.vectors.vectors.shape == (17, 33)
    (extracted,) = extract(bert, ["a a a a a ||| b b"], Reading(), max_length=7)
    assert extracted.vectors.tokens == ["[CLS]", "a", "a", "[SEP]", "b", "b", "[SEP]"]
    with pytest.raises(ValueError, match="line 2: a text must be str, got NoneType"):
        list(extract(bert, ["a", None], Reading()))  # type: ignore[list-item]


def test_the_table_fits(bert: Bert) -> None:
    (extracted,) = extract(bert, ["I 中 am"], Reading([0, -1], "stack"))
    for width in (10, 30, 80, 1000):
        table = to_table(extracted, width).splitlines()
        assert len(table) == 2 * (1 + 5)
        assert table[0] == "layer 0: 5 tokens, 33 numbers each"
        assert table[6].startswith("layer -1: ")
        rows = [row for row in table if not row.startswith("layer")]
        assert all(len(row) <= max(width, 19) for row in rows)
        numbers = [len(row.removesuffix(" ...").split()) - 1 for row in rows]
        assert set(numbers) == {{10: 1, 30: 2, 80: 7, 1000: 33}[width]}


def test_wide_characters_are_counted_as_terminals_do() -> None:
    tokenizer = WordPieceTokenizer([*PIECES[:5], "中", "x"], lowercase=True)
    config = ODD.__class__(**{**ODD.__dict__, "vocab_size": 7})
    (extracted,) = extract(Bert(config, tokenizer, random_model(config)), ["中 x"], Reading(0))
    wide, narrow = to_table(extracted, 20).splitlines()[2:4]
    assert len(wide) + 1 == len(narrow)  # 中 takes two columns


LINES = ["I am the walrus.", "", "a ||| b b", "  Wälrus 中 ", "a " * 40, "b a b", " ||| a", "a b ."]

# The outputs are these three; every promise about interruptions is tested on each.
OUTPUTS = {
    "out": Reading([0, -1], "concat", unit="word"),
    "out.npy": Reading(unit="sentence"),
    "out.jsonl": Reading([0, -1], "stack"),
}


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four blocks of lines."""
    monkeypatch.setattr(blocks, "BLOCK_LINES", 2)
    (tmp_path / "text").write_text("\n".join(LINES), "utf-8")
    return tmp_path / "text"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that is an output or tells of one."""
    names = sorted(path for path in folder.rglob("*out*/**/*") if path.is_file())
    names += [path for path in folder.glob("out*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


@pytest.mark.parametrize("reading", [*OUTPUTS.values(), Reading(special_tokens=False)])
def test_a_file_gives_what_its_lines_give(
    bert: Bert, text: Path, tmp_path: Path, reading: Reading
) -> None:
    manifest = extract_file(bert, Job(str(text), str(tmp_path / "out"), reading))
    assert (manifest["complete"], manifest["done"]["lines"]) == (True, len(LINES))
    stored = read_vectors(tmp_path / "out")
    assert len(stored) == len(LINES)  # an empty line, too, has its place
    texts = [("a", "b b") if line.startswith("a |||") else line for line in LINES]
    expected = bert.vectors(texts, **vars(reading))  # among them one in windows
    for number in range(len(LINES)):
        assert stored[number].tokens == expected[number].tokens
        assert stored[number].offsets == expected[number].offsets
        torch.testing.assert_close(
            torch.tensor(stored[number].vectors),
            torch.tensor(expected[number].vectors),
            atol=5e-6,
            rtol=0,
        )


@pytest.mark.parametrize("name", OUTPUTS)
def test_whenever_it_is_killed_the_result_is_the_same(
    bert: Bert, text: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk has at each step is what a kill -9 there would leave."""
    job = Job(str(text), str(tmp_path / "work" / name), OUTPUTS[name])
    (tmp_path / "work").mkdir()
    moments: list[Path] = []

    def watched(function: Callable[..., object]) -> Callable[..., object]:
        def watch(*arguments: object) -> object:
            for is_after in (False, True):
                moments.append(tmp_path / f"moment {len(moments)}")
                shutil.copytree(tmp_path / "work", moments[-1])
                result = None if is_after else function(*arguments)
            return result

        return watch

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", watched(os.fsync))
        patch.setattr(os, "replace", watched(os.replace))
        for writer in (ShardWriter, NpyWriter, JsonWriter):
            patch.setattr(writer, "put", watched(writer.put))
        extract_file(bert, job)
    expected = contents(tmp_path / "work")
    assert len(moments) > 40
    assert len({str(contents(moment)) for moment in moments}) > 10
    for moment in moments:
        shutil.rmtree(tmp_path / "work")
        moment.rename(tmp_path / "work")
        extract_file(bert, job)
        assert contents(tmp_path / "work") == expected, moment


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_is_complete_is_left_alone(bert: Bert, text: Path, tmp_path: Path, name: str) -> None:
    job = Job(str(text), str(tmp_path / name), OUTPUTS[name])
    extract_file(bert, job)
    expected = contents(tmp_path)
    with mock.patch.object(extract_module, "mixed_states") as never:
        extract_file(bert, job, existing="resume")
        assert not never.called
    assert contents(tmp_path) == expected
    extract_file(bert, job, existing="overwrite")
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("is_complete", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model", "model.sha256 was '.*', is '"),
        ("layers", r"options.layers was \[0, -1\], is \[0, -2\]"),
        ("batch_tokens", "options.batch_tokens was 1024, is 64"),
        ("dtype", "model.sha256 was '.*; options.dtype was 'float32', is 'float64'"),
        ("threads", "options.threads was "),
        ("append", "input.bytes was .*; input.lines was 8, is 9; input.sha256 was "),
        ("same size", "begun with something else: input.sha256 was '.*', is '.*'; give --overwr"),
    ],
)
def test_nothing_is_mixed(
    bert: Bert, text: Path, tmp_path: Path, change: str, says: str, is_complete: bool
) -> None:
    job = Job(str(text), str(tmp_path / "out"), OUTPUTS["out"])
    if is_complete:
        extract_file(bert, job)
    else:
        with (
            mock.patch.object(ShardWriter, "finish", side_effect=MemoryError),
            pytest.raises(MemoryError),
        ):
            extract_file(bert, job)
    expected = contents(tmp_path)
    threads = torch.get_num_threads()
    if change == "model":
        with torch.no_grad():
            bert.model.encoder.layers[0].attention.key.bias[3] += 1e-7
    elif change == "layers":
        job = replace(job, reading=replace(job.reading, layers=[0, -2]))
    elif change == "batch_tokens":
        job = replace(job, batch_tokens=64)
    elif change == "dtype":
        bert.model.to(torch.float64)
    elif change == "threads":
        torch.set_num_threads(threads + 1)
    else:
        more = {"append": "\nb", "same size": ""}[change]
        text.write_text("\n".join(LINES)[:-1] + "!" + more, "utf-8")
    try:
        with pytest.raises(ValueError, match=says):
            extract_file(bert, job)
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path) == expected


def test_a_file_that_moved_is_the_same(bert: Bert, text: Path, tmp_path: Path) -> None:
    extract_file(bert, Job(str(text), str(tmp_path / "out")))
    text.rename(tmp_path / "moved")
    (tmp_path / "out").rename(tmp_path / "there")
    extract_file(bert, Job(str(tmp_path / "moved"), str(tmp_path / "there")), existing="resume")


def test_an_input_that_changes_meanwhile(bert: Bert, text: Path, tmp_path: Path) -> None:
    whole = survey(str(text))
    text.write_text("b")
    with (
        mock.patch.object(extract_module, "survey", return_value=whole),
        pytest.raises(ValueError, match="text was changed while it was read"),
    ):
        extract_file(bert, Job(str(text), str(tmp_path / "out")))


def test_a_pipe_goes_on_too(bert: Bert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_LINES", 2)

    def feed(content: str) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))

    job = Job("-", str(tmp_path / "out.npy"), OUTPUTS["out.npy"])
    whole = "\n".join(LINES)
    feed(whole)
    extract_file(bert, job)
    expected = contents(tmp_path)
    feed(whole)
    extract_file(bert, job)  # complete: read through and found the same
    assert contents(tmp_path) == expected
    feed(f"{whole}\nmore")
    with pytest.raises(ValueError, match="- has changed: .* is of fewer lines"):
        extract_file(bert, job)
    feed(whole)
    with (
        mock.patch.object(NpyWriter, "put", side_effect=[None, None, None, MemoryError]),
        pytest.raises(MemoryError),
    ):
        extract_file(bert, job, existing="overwrite")
    feed("other\n" + whole)
    with pytest.raises(ValueError, match="- has changed: its first 2 lines are not those"):
        extract_file(bert, job)
    feed(whole)
    with mock.patch.object(NpyWriter, "put"):  # what was stored stays as it was, zeros
        extract_file(bert, job)
    feed(whole)
    extract_file(bert, job, existing="overwrite")
    assert contents(tmp_path) == expected


def test_texts_that_are_too_long_in_a_file(bert: Bert, text: Path, tmp_path: Path) -> None:
    job = Job(str(text), str(tmp_path / "out"))
    with pytest.raises(ValueError, match="line 5: 42 tokens are more than the 17 positions"):
        extract_file(bert, replace(job, long="error"))
    manifest = extract_file(bert, replace(job, long="truncate"), existing="overwrite")
    assert manifest["cut"] == 1
    assert len(read_vectors(tmp_path / "out")[4].tokens or []) == 17
    manifest = extract_file(bert, replace(job, max_length=3), existing="overwrite")
    assert manifest["cut"] == 0  # as it was asked
    with pytest.raises(ValueError, match="^line 5 has 42 tokens, .* windows that share 15 tok"):
        extract_file(bert, replace(job, stride=15), existing="overwrite")
    with (
        mock.patch.object(blocks, "TEXT_BYTES", 42 * 33 * 4 - 1),
        pytest.raises(ValueError, match="line 5: the states of 42 tokens take more than"),
    ):
        extract_file(bert, job, existing="overwrite")
    with (
        mock.patch.object(blocks, "TEXT_CHARACTERS", 79),
        pytest.raises(ValueError, match="line 5 has more than 79 characters"),
    ):
        extract_file(bert, job, existing="overwrite")


def test_blocks_are_bounded_by_tokens(bert: Bert, text: Path, tmp_path: Path) -> None:
    with (
        mock.patch.object(blocks, "BLOCK_LINES", 100),
        mock.patch.object(blocks, "BLOCK_TOKENS", 12),
    ):
        manifest = extract_file(bert, Job(str(text), str(tmp_path / "out")))
    # 9 + 2 + 6, 4 + 42, 5 + 6 + 5 tokens
    assert [entry["texts"] for entry in manifest["files"]] == [3, 2, 3]


def test_limits_and_empty_inputs(bert: Bert, text: Path, tmp_path: Path) -> None:
    for name, reading in OUTPUTS.items():
        manifest = extract_file(bert, Job(str(text), str(tmp_path / name), reading, limit=3))
        assert manifest["done"]["lines"] == len(read_vectors(tmp_path / name)) == 3
    text.write_text("")
    for name, reading in OUTPUTS.items():
        extract_file(bert, Job(str(text), str(tmp_path / name), reading), existing="overwrite")
        assert len(read_vectors(tmp_path / name)) == 0


def test_memory_is_given_back_now_and_then(bert: Bert, text: Path, tmp_path: Path) -> None:
    with (
        mock.patch.object(extract_module, "TRIM_TOKENS", 30),
        mock.patch.object(extract_module, "_give_back") as give_back,
    ):
        extract_file(bert, Job(str(text), str(tmp_path / "out")))
    assert give_back.call_count == 1  # after the text of 42 tokens; the other blocks are small
    extract_module._give_back()


SHAPES = """
import torch
import minibert.extract
from minibert.packing import PackedLinear

def used():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) >> 10

linear = PackedLinear(torch.nn.Linear(32, 32))
linear(torch.zeros(1, 32))
before = used()
with torch.inference_mode():
    for rows in range(2, 300):
        linear(torch.zeros(rows, 32))
print(used() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the memory so")
def test_no_program_is_kept_for_every_shape() -> None:
    """Measured: 25 MB, and 165 where there is no bound."""
    told = run_python(SHAPES)
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) < 80
