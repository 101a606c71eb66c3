import json
from pathlib import Path
from typing import Any

import pytest
from conftest import PIECES, whole

from minibert.config import CheckpointError
from minibert.files import read_object
from minibert.vocabulary import SPECIAL_TOKENS, read_vocabulary, settle

CASED = [*PIECES, "Walrus"]


def test_vocab_alone() -> None:
    parts = settle(PIECES, {"do_lower_case": False}, None)
    assert parts == (PIECES, False, None, True, [])
    parts = settle(PIECES, {"do_lower_case": True, "strip_accents": False}, None)
    assert (parts.lowercase, parts.strip_accents) == (True, False)
    assert not settle(PIECES, {"tokenize_chinese_chars": False}, None).tokenize_chinese_chars


def test_tokenizer_json_alone() -> None:
    assert settle(None, {}, whole(CASED)) == (CASED, False, None, True, [])
    assert settle(None, {}, whole(normalizer__lowercase=True)).lowercase


def test_a_vocabulary_without_capitals_is_for_lower_case() -> None:
    assert settle(PIECES, {}, None).lowercase


def test_a_vocabulary_with_capitals_must_say() -> None:
    says = "has capitals .'Walrus'.*\"do_lower_case\": false or true into tokenizer_config.json"
    with pytest.raises(CheckpointError, match=says):
        settle(CASED, {}, None)
    assert settle(CASED, {"do_lower_case": True}, None).lowercase
    assert not settle(CASED, {}, whole(CASED)).lowercase


@pytest.mark.parametrize(
    ("pieces", "settings", "content", "says"),
    [
        (None, {}, None, "there is neither a vocab.txt nor a tokenizer.json"),
        (CASED, {}, whole(), "vocab.txt and tokenizer.json have different vocabularies"),
        (PIECES, {"do_lower_case": True}, whole(), "has do_lower_case True, but tokenizer.json"),
        (PIECES, {"strip_accents": True}, whole(normalizer__strip_accents=False), "strip_accents"),
        (PIECES, {"tokenize_chinese_chars": False}, whole(), "tokenize_chinese_chars False, but"),
        (PIECES, {"do_lower_case": "false"}, None, "do_lower_case must be true or false"),
        (PIECES, {"do_lower_case": 0}, None, "do_lower_case must be true or false, got 0"),
        (PIECES, {"tokenizer_class": "RobertaTokenizer"}, None, "tokenizer_class 'RobertaTok"),
        (PIECES, {"tokenizer_class": "x" * 10**6}, None, "tokenizer_class 'x{79} is not .{,150}$"),
        (PIECES, {"word_tokenizer_type": "mecab"}, None, "word_tokenizer_type 'mecab' is not"),
        (PIECES, {"subword_tokenizer_type": "character"}, None, "subword_tokenizer_type 'char"),
        (PIECES, {"do_basic_tokenize": False}, None, "do_basic_tokenize False is not supported"),
        (PIECES, {"never_split": ["[E1]"]}, None, "never_split .* is not supported"),
        (PIECES, {"unk_token": "<unk>"}, None, "unk_token '<unk>' is not supported"),
        (PIECES, {"cls_token": {"content": "<s>"}}, None, "cls_token '<s>' is not supported"),
        (PIECES, {"padding_side": "both"}, None, "padding_side 'both' is not supported"),
    ],
)
def test_what_is_refused(
    pieces: list[str] | None, settings: dict[str, Any], content: dict[str, Any] | None, says: str
) -> None:
    with pytest.raises(CheckpointError, match=says):
        settle(pieces, settings, content)


def entry(token: str, number: int, **flags: bool) -> dict[str, Any]:
    return {"content": token, "id": number, "special": True, "normalized": False, **flags}


def test_added_tokens() -> None:
    added = [entry("[E2]", 15), entry("[E1]", 14), entry("wa", 8)]
    decoder = {str(one["id"]): one for one in added}
    from_settings = settle(PIECES, {"added_tokens_decoder": decoder}, None)
    from_json = settle(None, {}, whole(added_tokens=added))
    for parts in (from_settings, from_json):
        assert parts.vocabulary == [*PIECES, "[E1]", "[E2]"]
        assert parts.added_tokens == ["wa", "[E1]", "[E2]"]


@pytest.mark.parametrize(
    "settings",
    [
        {"additional_special_tokens": ["[MASK]", "wa"]},
        {"additional_special_tokens": ["wa", {"content": "wa", "lstrip": False}]},
        {"extra_special_tokens": ["wa"]},
        {"extra_special_tokens": {"walrus_token": "wa"}, "additional_special_tokens": None},
        {"additional_special_tokens": ["wa"], "added_tokens_decoder": {"8": {"content": "wa"}}},
    ],
)
def test_tokens_that_are_only_named(settings: dict[str, Any]) -> None:
    for content in (None, whole(added_tokens=[])):
        assert settle(PIECES, {"do_lower_case": False, **settings}, content).added_tokens == ["wa"]


@pytest.mark.parametrize(
    ("named", "says"),
    [
        (["[E1]"], r"unknown form, or not in the vocabulary \('\[E1\]'\)"),
        ([{"content": "wa", "lstrip": True}], "added token 'wa' is lstrip: not supported"),
        (["wa", 1], "unknown form"),
        ([{}], "unknown form"),
        ("wa", "unknown form"),
        (7, "unknown form"),
    ],
)
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_tokens_that_are_only_named_and_refused(key: str, named: object, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        settle(PIECES, {key: named}, None)


def test_many_added_tokens_take_no_time() -> None:
    """A quadratic search would take minutes."""
    more = [f"[E{number}]" for number in range(50_000)]
    added = [entry(token, 14 + number) for number, token in enumerate(more)]
    assert len(settle(None, {}, whole(added_tokens=added)).vocabulary) == 50_014
    settings = {"additional_special_tokens": more}
    assert settle([*PIECES, *more], settings, None).added_tokens == more


@pytest.mark.parametrize(
    ("added", "says"),
    [
        (entry("[E1]", 20), "added token '.E1.' has the id 20; 14 is next"),
        (entry("[E1]", 5), "added token '.E1.' has the id of 'i'"),
        (
            entry("[E1]", 14, normalized=True),
            "added token '.E1.' is normalized: .*normalized=False",
        ),
        (entry("[E1]", 14, lstrip=True), "added token '.E1.' is lstrip: not supported"),
    ],
)
def test_added_tokens_that_are_refused(added: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        settle(None, {}, whole(added_tokens=[added]))


def test_lines_of_a_vocabulary_end_at_newlines_only(tmp_path: Path) -> None:
    lines = [*SPECIAL_TOKENS, "a\u2028b", "c\x85d", "e\x0cf", "g "]
    path = tmp_path / "vocab.txt"
    path.write_bytes("\ufeff".encode() + "\r\n".join(lines).encode())
    assert read_vocabulary(path) == [*SPECIAL_TOKENS, "a\u2028b", "c\x85d", "e\x0cf", "g"]
    path.write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(CheckpointError, match="not UTF-8 at byte 6"):
        read_vocabulary(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not a readable JSON file"),
        ("[" * 100_000, "is not a readable JSON file"),
        ('{"a": 1, "a": 2}', "an object has a key twice"),
        ("[1]", "expected a JSON object, got list"),
    ],
)
def test_json_that_is_no_object(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "file").write_text(content)
    with pytest.raises(CheckpointError, match=says):
        read_object(tmp_path / "file")
    (tmp_path / "file").write_text(json.dumps({"a": 1}))
    assert read_object(tmp_path / "file") == {"a": 1}
