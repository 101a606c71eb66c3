import pytest

from minibert.config import BertConfig
from minibert.job import Job, layer_labels, row_shape
from minibert.vectors import Reading

SENTENCE = Reading(unit="sentence")


def test_the_name_says_the_format() -> None:
    assert Job("a", "b").kind == "safetensors"
    assert Job("a", "b.npy", SENTENCE).kind == "npy"
    assert Job("a", "b.jsonl").kind == "jsonl"
    assert Job("a", "b.v1", format="safetensors").kind == "safetensors"
    assert Job("a", "b", format="jsonl").kind == "jsonl"


def test_a_folder_that_exists_may_have_any_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert Job("a", str(tmp_path_factory.mktemp("b.v1"))).kind == "safetensors"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"output": "b.csv"}, "b.csv names no format: write NAME.npy, NAME.jsonl or a folder's"),
        ({"format": "table"}, "format must be one of .*, got 'table'"),
        ({"long": "cut"}, "long must be one of .*, got 'cut'"),
        ({"store_dtype": "float64"}, "store_dtype must be one of .*, got 'float64'"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, got 0"),
        ({"limit": -1}, "limit must be at least 1, got -1"),
        ({"stride": -1}, "stride must be at least 0, got -1"),
        ({"stride": 5, "long": "truncate"}, "stride goes with windows, not truncate"),
        ({"output": "b.npy"}, "a .npy file is for the unit sentence"),
        (
            {"output": "b.npy", "reading": SENTENCE, "store_dtype": "bfloat16"},
            "in float32 or float16",
        ),
        ({"output": "b.jsonl", "store_dtype": "float16"}, "JSON lines have no float16"),
        ({"reading": Reading(unit="span")}, "lines have no spans"),
    ],
)
def test_what_contradicts(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Job(**{"input": "a", "output": "b", **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reading", "labels", "row"),
    [
        (Reading(), [-1], (5,)),
        (Reading([-1, 0, -4], "stack"), [-1, 0, -4], (3, 5)),
        (Reading([2], "stack"), [2], (1, 5)),
        (Reading("all", "stack"), [1, 2, 3], (3, 5)),
        (Reading("all", "concat"), ["concat of 1, 2, 3"], (15,)),
        (Reading([-1, -2], [0.5, 2.0]), ["0.5 * (-1) + 2 * (-2)"], (5,)),
        (Reading(unit="sentence", pooling="pooler"), ["pooler"], (5,)),
    ],
)
def test_what_a_row_is(reading: Reading, labels: list[int | str], row: tuple[int, ...]) -> None:
    config = BertConfig(hidden_size=5, num_hidden_layers=3, num_attention_heads=1)
    assert layer_labels(reading, 3) == labels
    assert row_shape(reading, config) == row
