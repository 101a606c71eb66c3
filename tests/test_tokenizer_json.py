import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PIECES, whole

from minibert.config import CheckpointError
from minibert.vocabulary import settle

FRAME = r"tokenizer.json does not frame texts as BertTokenizer does: \[CLS\] A \[SEP\] and"


def template(single: str, pair: str, **ids: int) -> dict[str, Any]:
    """The post-processor that `tokenizers` itself makes of two templates."""
    tokenizers = pytest.importorskip("tokenizers")
    numbers = {"[CLS]": 2, "[SEP]": 3, **ids}
    made = tokenizers.processors.TemplateProcessing(single, pair, list(numbers.items()))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece())
    tokenizer.post_processor = made
    found: dict[str, Any] = json.loads(tokenizer.to_str())["post_processor"]
    return found


SINGLE, PAIR = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"


def test_the_frame_of_bert_as_a_template() -> None:
    content = whole(post_processor=template(SINGLE, PAIR))
    assert settle(None, {}, content).vocabulary == PIECES


@pytest.mark.parametrize("lowercase", [True, False])
def test_files_that_tokenizers_wrote(lowercase: bool) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    ids = {piece: number for number, piece in enumerate(PIECES)}
    theirs = tokenizers.BertWordPieceTokenizer(ids, lowercase=lowercase)
    theirs.add_special_tokens(["[E1]"])
    content = json.loads(theirs.to_str())
    assert content["post_processor"]["type"] == "BertProcessing"
    parts = settle(None, {"tokenizer_class": "PreTrainedTokenizerFast"}, content)
    assert parts == ([*PIECES, "[E1]"], lowercase, None, True, ["[E1]"])


def test_a_file_of_a_release(shared: Callable[[str], Path]) -> None:
    content = json.loads(shared("hub/bert-base-uncased/tokenizer.json").read_text())
    assert content["post_processor"]["type"] == "TemplateProcessing"
    assert len(settle(None, {}, content).vocabulary) == 30522


@pytest.mark.parametrize(
    ("single", "pair", "ids"),
    [
        ("$A", PAIR, {}),
        ("$A [SEP]", PAIR, {}),
        ("[CLS] $A [SEP] [SEP]", PAIR, {}),
        ("[SEP] $A [CLS]", PAIR, {}),
        ("[CLS] $A:1 [SEP]", PAIR, {}),
        (SINGLE, "$A $B", {}),
        (SINGLE, "[CLS] $A [SEP] $B [SEP]", {}),
        (SINGLE, "[CLS] $B [SEP] $A:1 [SEP]:1", {}),
        (SINGLE, PAIR, {"[CLS]": 4}),
    ],
)
def test_other_frames_are_refused(single: str, pair: str, ids: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match=FRAME):
        settle(None, {}, whole(post_processor=template(single, pair, **ids)))


@pytest.mark.parametrize("broken", [[], {"special_tokens": 1}, {"single": [1]}, {"single": None}])
def test_frames_that_are_broken_are_refused(broken: Any) -> None:
    made = {**template(SINGLE, PAIR), **broken} if isinstance(broken, dict) else broken
    with pytest.raises(CheckpointError, match=FRAME):
        settle(None, {}, whole(post_processor=made))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (whole(model__type="BPE"), "of kind 'BPE', not WordPiece"),
        ({"model": None}, "of kind None, not WordPiece"),
        (whole(model__unk_token="<unk>"), "unk_token '<unk>', only '.UNK.'"),
        (whole(model__continuing_subword_prefix="@@"), "continuing_subword_prefix '@@'"),
        (whole(model__max_input_chars_per_word=200), "max_input_chars_per_word 200"),
        (whole(model__vocab={"a": 0, "b": 2}), "ids of the vocabulary are not 0, 1, 2"),
        (whole(normalizer=None), "another normalizer than BertNormalizer"),
        (whole(normalizer__type="Lowercase"), "another normalizer than BertNormalizer"),
        (whole(normalizer__clean_text=False), "clean_text must be true"),
        (whole(pre_tokenizer=None), "another pre_tokenizer than BertPreTokenizer"),
        (whole(pre_tokenizer__type="Whitespace"), "another pre_tokenizer than BertPre"),
        (whole(post_processor=None), FRAME),
        (whole(post_processor__type="RobertaProcessing"), FRAME),
        (whole(post_processor__cls=["[CLS]", 3]), FRAME),
        (whole(post_processor__sep="[SEP]"), FRAME),
        (whole(post_processor__sep=["[MASK]", 4]), FRAME),
    ],
)
def test_what_is_refused(content: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        settle(None, {}, content)
