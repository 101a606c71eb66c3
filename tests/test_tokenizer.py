import copy
import json
import pickle
import random
import sys
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PIECES, run_python

from minibert import wordpiece
from minibert.config import CheckpointError
from minibert.hub import load_tokenizer
from minibert.tokenizer import WordPieceTokenizer
from minibert.vocabulary import SPECIAL_TOKENS, read_vocabulary

# (name of the released vocabulary, whether its model is lower-cased)
RELEASED = [
    ("bert-base-uncased", True),
    ("bert-base-cased", False),
    ("bert-base-multilingual-cased", False),
    ("bert-base-chinese", False),
]


@pytest.fixture
def small() -> WordPieceTokenizer:
    return WordPieceTokenizer(PIECES, lowercase=True)


def test_examples_of_the_user(vocabulary: Callable[[str], Path]) -> None:
    tokenizer = WordPieceTokenizer.from_file(vocabulary("bert-base-cased"), lowercase=False)
    assert " ".join(tokenizer.tokenize("I am the walrus.")) == "I am the wa ##l ##rus ."
    question = "What are the elements in a BERT word embedding?"
    pieces = "What are the elements in a B ##ER ##T word em ##bed ##ding ?"
    assert " ".join(tokenizer.tokenize(question)) == pieces


def test_encoding_by_hand(small: WordPieceTokenizer) -> None:
    encoding = small.encode("The  walrus.[MASK]", "I am?")
    assert encoding.tokens == [
        "[CLS]", "the", "wa", "##l", "##rus", ".", "[MASK]", "[SEP]",
        "i", "am", "[UNK]", "[SEP]",
    ]  # fmt: skip
    assert encoding.input_ids == [2, 7, 8, 9, 10, 11, 4, 3, 5, 6, 1, 3]
    assert encoding.token_type_ids == [0] * 8 + [1] * 4
    assert encoding.special_tokens_mask == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert encoding.word_ids == [None, 0, 1, 1, 1, 2, 3, None, 0, 1, 2, None]
    assert encoding.offsets == [
        (0, 0), (0, 3), (5, 7), (7, 8), (8, 11), (11, 12), (12, 18), (0, 0),
        (0, 1), (2, 4), (4, 5), (0, 0),
    ]  # fmt: skip


def test_stored_answers_of_tokenizers(minilm_folder: Path) -> None:  # noqa: ARG001
    """Nasty texts, as tokenizers 0.23.3 with minilm's vocabulary encoded them."""
    tokenizer = load_tokenizer("minilm")
    stored = json.loads((Path(__file__).parent / "data" / "tokenizer.json").read_text())
    assert len(stored) > 30
    for case in stored:
        encoding = tokenizer.encode(case["text"])
        assert encoding.tokens == case["tokens"], case["text"]
        assert encoding.input_ids == case["ids"]
        assert [list(span) for span in encoding.offsets] == case["offsets"]
        assert encoding.word_ids == case["word_ids"]


def test_special_tokens_in_text_that_is_not_trusted(small: WordPieceTokenizer) -> None:
    assert small.tokenize("a[SEP]b") == ["a", "[SEP]", "b"]
    plain = ["a", "[UNK]", "[UNK]", "[UNK]", "b"]
    assert small.tokenize("a[SEP]b", special_tokens_in_text=False) == plain
    for encoding in (
        small.encode("a[SEP]b", "[CLS]", special_tokens_in_text=False),
        small.encode_batch([("a[SEP]b", "[CLS]")], special_tokens_in_text=False)[0],
        small.encode_windows("a[SEP]b", "[CLS]", max_length=20, special_tokens_in_text=False)[0],
    ):
        assert encoding.tokens == ["[CLS]", *plain, "[SEP]", *["[UNK]"] * 3, "[SEP]"]
        assert encoding.input_ids.count(3) == 2
    (ids,) = small.encode_ids(["a[SEP]b"], special_tokens_in_text=False)
    assert ids == [2, 12, 1, 1, 1, 13, 3]
    assert small.encode_ids(["a[SEP]b", "a"]) == [[2, 12, 3, 13, 3], [2, 12, 3]]


def test_ids_alone_are_those_of_encode(small: WordPieceTokenizer) -> None:
    texts = ["I am the walrus.", "", "wälrus a", "[MASK]a", "\x00", "a\tb", "THE"] * 60
    for side in ("right", "left"):
        small.truncation_side = side
        for length in (None, 2, 4):
            expected = [small.encode(text, max_length=length).input_ids for text in texts]
            assert small.encode_ids(texts, length) == expected
    assert small.encode_ids([]) == []
    for wrong in ("a", 5, None):
        with pytest.raises(ValueError, match=f"a list of str, got {type(wrong).__name__}"):
            small.encode_ids(wrong)
    with pytest.raises(ValueError, match="a text must be str, got NoneType"):
        small.encode_ids(["a", None])  # type: ignore[list-item]


def test_batches_of_texts_and_pairs(small: WordPieceTokenizer) -> None:
    batch = small.encode_batch(["I am", ("a", "b")], max_length=4)
    assert batch == [small.encode("I am", None, 4), small.encode("a", "b", 4)]
    assert small.encode_batch([]) == []
    for texts in ("I am", 5, None):
        with pytest.raises(ValueError, match="list of str or pairs, got"):
            small.encode_batch(texts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"texts\[1\] must be a str or a pair of them, got NoneT"):
        small.encode_batch(["a", None])  # type: ignore[list-item]


def test_truncation_can_be_an_error(small: WordPieceTokenizer) -> None:
    assert small.encode("a b", max_length=4, truncation=None).tokens == ["[CLS]", "a", "b", "[SEP]"]
    with pytest.raises(ValueError, match="the text has 1 tokens more than max_length leaves room"):
        small.encode("a b a", max_length=4, truncation=None)
    with pytest.raises(ValueError, match="max_length 1 leaves no room for 2 added tokens"):
        small.encode("a", max_length=1)
    with pytest.raises(ValueError, match="max_length 2 leaves no room for 3 added tokens"):
        small.encode("a", "b", max_length=2)


def test_windows_lose_nothing(small: WordPieceTokenizer) -> None:
    text = "I am the walrus. " * 5
    whole = small.encode(text)
    windows = small.encode_windows(text, max_length=9, stride=3)
    assert all(len(window) <= 9 for window in windows)
    spans = [span for window in windows for span in window.offsets[1:-1]]
    assert sorted(set(spans)) == whole.offsets[1:-1]
    for one, following in zip(windows, windows[1:], strict=False):
        assert one.offsets[-4:-1] == following.offsets[1:4]
    pair = small.encode_windows("the walrus", text, max_length=12)
    assert all(window.tokens[:6] == pair[0].tokens[:6] for window in pair)
    with pytest.raises(ValueError, match="stride must be from 0 to"):
        small.encode_windows(text, max_length=5, stride=3)


def test_decoding(small: WordPieceTokenizer) -> None:
    ids = small.encode("I am the walrus.").input_ids
    assert small.decode(ids) == "[CLS] i am the walrus. [SEP]"
    assert small.decode(ids, skip_special_tokens=True) == "i am the walrus."
    assert small.decode([]) == ""
    for wrong in (14, -1, 5.0, "a"):
        with pytest.raises(ValueError, match=f"id {wrong} is outside this vocabulary, 0 to 13"):
            small.decode([wrong])  # type: ignore[list-item]


def test_tokens_to_text(small: WordPieceTokenizer) -> None:
    text = "I  am THE  Wälrus\u0301!"
    encoding = small.encode(text)
    assert small.tokens_to_text(text, encoding, 1, 3) == "I  am"
    assert small.tokens_to_text(text, encoding, 4, 7) == "Wälrus"
    assert small.tokens_to_text(text, encoding, 0, len(encoding)) == text
    assert small.tokens_to_text(text, encoding, 0, 1) == ""


def test_trace(small: WordPieceTokenizer) -> None:
    steps = small.trace("[MASK]Wälrus x")
    assert steps[0] == ("special token", "[MASK]")
    assert ("accents stripped", "Walrus x") in steps
    assert steps[-2:] == [
        ("pieces", "walrus: (walrus) (walru) (walr) (wal) wa, (##lrus) (##lru) (##lr) ##l, ##rus"),
        ("pieces", "x: [UNK], since some part of it has no piece"),
    ]


@pytest.mark.parametrize("text", [None, 1, b"bytes", ["a"]])
def test_text_must_be_str(small: WordPieceTokenizer, text: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: small.tokenize(text),
        lambda: small.encode(text),
        lambda: small.encode("a", 0 if text is None else text),
        lambda: small.encode_windows(text, max_length=5),
        lambda: small.trace(text),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="a text must be str, got"):
            call()


def test_half_of_a_surrogate_pair(small: WordPieceTokenizer) -> None:
    for call in (small.tokenize, small.encode, small.trace, lambda text: small.encode_ids([text])):
        with pytest.raises(
            ValueError, match=r"character 1 of the text, U\+D800, is half of a surr"
        ):
            call("a\ud800b")


def test_ten_megabytes_in_one_line(small: WordPieceTokenizer) -> None:
    line = "I am the walrus. " * 600_000
    (ids,) = small.encode_ids([line])
    assert len(ids) == 7 * 600_000 + 2
    assert small.tokenize("x" * 10_000_000) == ["[UNK]"]


def test_bad_vocabularies() -> None:
    with pytest.raises(CheckpointError, match="has 'a' twice, in lines 6 and 8"):
        WordPieceTokenizer([*SPECIAL_TOKENS, "a", "b", "a"], True)
    with pytest.raises(CheckpointError, match=r"no \[MASK\]; is it BERT's"):
        WordPieceTokenizer([*SPECIAL_TOKENS[:-1], "a"], True)
    with pytest.raises(CheckpointError, match=r"no \[E1\]"):
        WordPieceTokenizer(PIECES, True, added_tokens=["[E1]"])
    with pytest.raises(ValueError, match="lowercase must be True or False, got 'false'"):
        WordPieceTokenizer(PIECES, "false")  # type: ignore[arg-type]


def test_vocabulary_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    with pytest.raises(CheckpointError, match=r"vocab.txt: cannot read .*: No such"):
        WordPieceTokenizer.from_file(path, lowercase=True)
    path.write_text("\n".join(PIECES), "utf-8")
    assert WordPieceTokenizer.from_file(path, lowercase=True).vocabulary == tuple(PIECES)


def test_added_tokens_are_found_as_written() -> None:
    tokenizer = WordPieceTokenizer([*PIECES, "[E1]", "[E1]x"], True, added_tokens=["[E1]", "[E1]x"])
    assert tokenizer.tokenize("a[E1]b[e1][E1]x") == [
        "a", "[E1]", "b", "[UNK]", "[UNK]", "[UNK]", "[E1]x",
    ]  # fmt: skip
    assert tokenizer.encode_ids(["a[E1]b"]) == [[2, 12, 14, 13, 3]]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens_that_are_only_named(folder: Path, name: str) -> None:
    """As transformers before 4.34 wrote them."""
    transformers = pytest.importorskip("transformers")
    content = {"additional_special_tokens": ["am"], "mask_token": "[MASK]"}
    (folder / name).write_text(json.dumps(content))
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("I am", "iama", "AM[MASK]"):
        assert ours.encode(text).input_ids == theirs(text)["input_ids"]


def test_tokenizers_share_nothing(small: WordPieceTokenizer) -> None:
    other = WordPieceTokenizer([*SPECIAL_TOKENS, *reversed(PIECES[5:])], lowercase=True)
    cased = WordPieceTokenizer(PIECES, lowercase=False)
    for _ in range(2):
        assert small.encode_ids(["I am"]) == [[2, 5, 6, 3]]
        assert other.encode_ids(["I am"]) == [[2, 13, 12, 3]]
        assert cased.encode_ids(["I am"]) == [[2, 1, 6, 3]]


def test_copies_and_threads(small: WordPieceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordpiece, "MAX_WORDS", 20)  # so that memos are emptied all the time
    texts = [f"I am {number} the walrus wa{number}l." for number in range(300)]
    expected = [small.encode(text) for text in texts]
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert twin.encode_batch(texts) == expected
    results: list[list[Any]] = []

    def work() -> None:
        results.append(small.encode_batch(texts))
        assert small.encode_ids(texts) == [encoding.input_ids for encoding in expected]

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_a_stream_of_distinct_words_needs_no_more_memory() -> None:
    # Ten million were tried, too; after half a million the memo is full, and nothing grows.
    result = run_python(f"""
import re
from minibert.tokenizer import WordPieceTokenizer
tokenizer = WordPieceTokenizer({PIECES!r}, True)
for million in range(4):
    for start in range(0, 500_000, 1000):
        words = (f"wa{{million * 500_000 + start + n}}rus" for n in range(1000))
        tokenizer.encode_ids([" ".join(words)])
    print(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])
""")
    first, *later = map(int, result.stdout.split())
    assert max(later) < 1.1 * first
    assert max(later) < 100_000  # KiB, with Python itself


# Against the reference, live.


def reference(vocabulary: Path, **settings: object) -> Any:
    transformers = pytest.importorskip("transformers")
    lowercase = settings.pop("lowercase")
    return transformers.BertTokenizerFast(str(vocabulary), do_lower_case=lowercase, **settings)


MARKS = [chr(code) for code in range(0x1F000) if unicodedata.combining(chr(code))]
MOVING = [*"\u1b44\u302e\u302f\ua953\U0001d165\U0001d16d\U0001d16e\U0001d15e\u08d4\u0f73\u0344"]
SPACES = [*" \t\n\r\xa0\u3000\u2028\u2003\x0b\x0c\x1c\x85\u200b\u200d\ufeff\xad\x00\ufffd\ue000"]
PUNCTUATION = [*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~—–…„“«»·≮≯≠"]
SPECIAL = [*SPECIAL_TOKENS, "[mask]", "[ MASK]", "[MA", "SK]", "##ing", "[unused1]"]
ODD = [*"ßẞİıſΣςﬁŉǰΐ", *"😀👩🇩🇪❤️🏽♂️", "\u200d"]
SCRIPTS = [
    (0x30, 0x3A), (0x41, 0x5B), (0x61, 0x7B), (0x61, 0x7B), (0xC0, 0x250), (0x370, 0x530),
    (0x590, 0x700), (0x900, 0xE00), (0x1100, 0x1200), (0x1E00, 0x2000), (0x3040, 0x3100),
    (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xF900, 0xFB00), (0x2B700, 0x2CF00), (0x2F800, 0x2FA20),
    (0xE000, 0x110000),
]  # fmt: skip


def nasty_texts(seed: int, count: int) -> list[str]:
    """Texts that mix scripts, marks in the wrong order, controls, special tokens, long words."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(draw.randrange(20)):
            kind = draw.random()
            if kind < 0.55:
                part = chr(draw.randrange(*draw.choice(SCRIPTS)))
            else:
                kinds = (SPACES, SPACES, PUNCTUATION, MARKS, MARKS, MOVING, SPECIAL, ODD)
                part = draw.choice(draw.choice(kinds))
            parts.append(part * draw.choice((1, 1, 1, 2, 3)))
        if draw.random() < 0.01:
            parts.append(draw.choice(("x", "é", "a\u0301")) * draw.randrange(95, 105))
        texts.append("".join(parts))
    return texts


SETTINGS = [
    (name, lowercase, strip_accents, chinese)
    for name, lowercase in RELEASED
    for strip_accents in (None, True, False)
    for chinese in (True, False)
    if name == "bert-base-uncased" or (strip_accents is None and chinese)
]


@pytest.mark.parametrize(("name", "lowercase", "strip_accents", "chinese"), SETTINGS)
def test_random_texts(
    vocabulary: Callable[[str], Path],
    name: str,
    lowercase: bool,
    strip_accents: bool | None,
    chinese: bool,
) -> None:
    """1,000,000 in all; every list of the encoding is compared."""
    path = vocabulary(name)
    settings = {"strip_accents": strip_accents, "tokenize_chinese_chars": chinese}
    ours = WordPieceTokenizer(read_vocabulary(path), lowercase, **settings)  # type: ignore[arg-type]
    theirs = reference(path, lowercase=lowercase, **settings).backend_tokenizer
    count = 1_000_000 // len(SETTINGS) // 1000 + 1
    for seed in range(count):
        texts = nasty_texts(
            seed * 100 + SETTINGS.index((name, lowercase, strip_accents, chinese)), 1000
        )
        expected = theirs.encode_batch(texts)
        assert ours.encode_ids(texts) == [encoding.ids for encoding in expected]
        for text, encoding in zip(texts, expected, strict=True):
            got = ours.encode(text)
            assert got.offsets == encoding.offsets, ascii(text)
            assert got.tokens == encoding.tokens, ascii(text)
            assert got.word_ids == encoding.word_ids, ascii(text)
            assert got.input_ids == encoding.ids
            assert got.token_type_ids == encoding.type_ids
            assert got.attention_mask == encoding.attention_mask
            assert got.special_tokens_mask == encoding.special_tokens_mask


@pytest.mark.parametrize(("name", "lowercase"), RELEASED)
def test_every_line_of_the_corpus(
    vocabulary: Callable[[str], Path], shared: Callable[[str], Path], name: str, lowercase: bool
) -> None:
    path = vocabulary(name)
    ours = WordPieceTokenizer.from_file(path, lowercase)
    theirs = reference(path, lowercase=lowercase).backend_tokenizer
    lines = shared("corpus.txt").read_text("utf-8").split("\n")
    assert len(lines) > 144_000
    for begin in range(0, len(lines), 5000):
        block = lines[begin : begin + 5000]
        expected = theirs.encode_batch(block)
        assert ours.encode_ids(block) == [encoding.ids for encoding in expected]
        for line, encoding in zip(block, expected, strict=True):
            got = ours.encode(line)
            assert (got.offsets, got.word_ids) == (encoding.offsets, encoding.word_ids), line


@pytest.mark.parametrize(("name", "lowercase"), RELEASED)
def test_pairs_truncation_padding_and_windows(
    vocabulary: Callable[[str], Path], name: str, lowercase: bool
) -> None:
    path = vocabulary(name)
    ours = WordPieceTokenizer.from_file(path, lowercase)
    theirs = reference(path, lowercase=lowercase)
    draw = random.Random(0)
    texts = nasty_texts(0, 400)
    for text in texts:
        pair = draw.choice([None, draw.choice(texts)])
        length = draw.randrange(3, 30)
        truncation = draw.choice(["longest_first", "only_first", "only_second" if pair else True])
        strategy = "longest_first" if truncation is True else truncation
        ours.truncation_side = theirs.truncation_side = draw.choice(["left", "right"])
        ours.padding_side = theirs.padding_side = draw.choice(["left", "right"])
        padding, multiple = draw.choice([(None, 1), ("longest", 8), (length + 5, 1)])
        batch = [text if pair is None else (text, pair)]
        arguments = [text] if pair is None else [text, pair]
        try:
            expected = theirs(*arguments, max_length=length, truncation=truncation)
        except Exception:  # the text to be cut is shorter than what must go
            with pytest.raises(ValueError, match=f"{strategy} cannot shorten this by"):
                ours.encode_batch(batch, length, strategy)
            continue
        if padding == "longest":
            expected = theirs.pad(expected, padding=True, pad_to_multiple_of=multiple)
        elif padding is not None:
            expected = theirs.pad(expected, padding="max_length", max_length=padding)
        (got,) = ours.encode_batch(batch, length, strategy, padding, multiple)
        for key in ("input_ids", "token_type_ids", "attention_mask"):
            assert getattr(got, key) == expected[key], (ascii(text), ascii(pair), length, strategy)
        check_windows(ours, theirs, text, pair)


def check_windows(ours: WordPieceTokenizer, theirs: Any, text: str, pair: str | None) -> None:
    length = len(ours.encode(text)) + 7 if pair else 8
    windows = ours.encode_windows(text, pair, max_length=length, stride=2)
    if pair and len(ours.encode(pair)) - 2 <= 6:
        assert len(windows) == 1
        return
    expected = theirs(
        *([text, pair] if pair else [text]),
        max_length=length,
        stride=2,
        truncation="only_second" if pair else "only_first",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert [window.input_ids for window in windows] == expected["input_ids"], ascii(text)
    assert [window.offsets for window in windows] == expected["offset_mapping"]


@pytest.mark.parametrize(("name", "lowercase"), RELEASED)
def test_decoding_equals_transformers(
    vocabulary: Callable[[str], Path], name: str, lowercase: bool
) -> None:
    path = vocabulary(name)
    ours = WordPieceTokenizer.from_file(path, lowercase)
    theirs = reference(path, lowercase=lowercase)
    draw = random.Random(0)
    texts = ["Don't! It's 5 o'clock, isn't it? I've; we're; I'm ' so ' .", *nasty_texts(1, 200)]
    rows = [ours.encode(text).input_ids for text in texts]
    rows += [draw.choices(range(len(ours)), k=12) for _ in range(200)]
    for ids in rows:
        for skip in (True, False):
            for clean_up in (True, False):
                expected = theirs.decode(
                    ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean_up
                )
                assert ours.decode(ids, skip, clean_up) == expected


def test_knows_nothing_of_torch() -> None:
    code = "import sys, minibert.tokenizer, minibert.hub; sys.exit('torch' in sys.modules)"
    assert run_python(code).returncode == 0
    assert "torch" in sys.modules  # the check can tell the difference
