import argparse

import pytest
from conftest import ODD, PIECES, random_model

from minibert.bert import Bert
from minibert.job import Job
from minibert.options import add_extract_options, file_options, reading_options
from minibert.tokenizer import WordPieceTokenizer
from minibert.vectors import Reading


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--input")
    add_extract_options(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "reading"),
    [
        ([], Reading()),
        (["--layers=-1"], Reading(-1)),
        # Several layers are kept apart where people look, and in Google's format.
        (["--layers=-1,0"], Reading([-1, 0], "stack")),
        (["--layers=-1,0", "--output=a", "--format=jsonl"], Reading([-1, 0], "stack")),
        (["--layers=-1,0", "--output=a.jsonl"], Reading([-1, 0], "stack")),
        (["--layers=-1,0", "--output=a.jsonl", "--format=npy"], Reading([-1, 0], "sum")),
        (["--layers=-1,0", "--output=a"], Reading([-1, 0], "sum")),
        (["--layers=all", "--combine=concat"], Reading("all", "concat")),
        (["--layers=1,2", "--combine=0.25,-1"], Reading([1, 2], [0.25, -1])),
        (["--unit=word", "--pooling=first"], Reading(unit="word", pooling="first")),
        (["--unit=sentence", "--pooling=pooler"], Reading(unit="sentence", pooling="pooler")),
        (["--normalize", "--no-special-tokens"], Reading(normalize=True, special_tokens=False)),
    ],
)
def test_readings(arguments: list[str], reading: Reading) -> None:
    bert = Bert(ODD, WordPieceTokenizer(PIECES, lowercase=True), random_model(ODD))
    assert bert.reading(**reading_options(parse(*arguments))) == reading


@pytest.mark.parametrize(
    ("arguments", "job"),
    [
        ([], Job("a", "b")),
        (["--long=truncate"], Job("a", "b", long="truncate")),
        (["--stride=3"], Job("a", "b", stride=3)),
        (["--store-dtype=float16"], Job("a", "b", store_dtype="float16")),
        (["--batch-tokens=7", "--limit=8"], Job("a", "b", batch_tokens=7, limit=8)),
    ],
)
def test_jobs(arguments: list[str], job: Job) -> None:
    assert Job("a", "b", **file_options(parse("--input=a", "--output=b", *arguments))) == job


def test_what_is_done_with_an_output_that_exists() -> None:
    assert file_options(parse("--input=a", "--output=b", "--resume")) == {"existing": "resume"}
    assert file_options(parse("--input=a", "--output=b", "--overwrite"))["existing"] == "overwrite"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--limit=3"], "--limit goes with --output"),
        (["--store-dtype=float16"], "--store-dtype goes with --output"),
        (["--overwrite"], "--overwrite goes with --output"),
        (["--format=npy"], "--format npy goes with --output"),
        (["--output=b"], "--output goes with --input FILE"),
    ],
)
def test_nothing_is_ignored(arguments: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        file_options(parse(*arguments))
