"""Bad inputs, and what minibert makes of them: one table.

The rows are those on which libraries that are in use were seen to go wrong, half of them silently:
with random weights, the wrong vocabulary or another model. "loads" means that the file is harmless,
and that every tensor arrives; else the row has what the error says. What can only be seen over a
network is in test_hub.py and test_cache.py; the last rows name it.
"""

import ast
import json
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import ODD, PIECES, random_model, whole
from safetensors.torch import load_file, save_file
from torch import Tensor

from minibert.bert import Bert
from minibert.config import CheckpointError
from minibert.head_config import HEADS
from minibert.hub import find_files
from minibert.loading import load
from minibert.tokenizer import SPECIAL_TOKENS

Edit = Callable[[Path], object]
WEIGHTS = "model.safetensors"
SETTINGS = "tokenizer_config.json"
KEY = "encoder.layer.1.attention.self.key.bias"
LOADS = "loads"


def put(name: str, content: bytes | str) -> Edit:
    """Give a file another content."""
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(content)


def gone(*names: str) -> Edit:
    return lambda folder: [(folder / name).unlink() for name in names]


def both(first: Edit, second: Edit) -> Edit:
    return lambda folder: (first(folder), second(folder))


def config(**changes: object) -> Edit:
    return lambda folder: _change(folder / "config.json", changes)


def settings(**changes: object) -> Edit:
    return lambda folder: _change(folder / SETTINGS, changes)


def _change(path: Path, changes: dict[str, object]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def tensors(edit: Callable[[dict[str, Tensor]], object]) -> Edit:
    def change(folder: Path) -> None:
        content = load_file(folder / WEIGHTS)
        edit(content)
        save_file(content, folder / WEIGHTS)

    return change


def renamed(old: str, new: str) -> Edit:
    return tensors(lambda t: t.update({re.sub(old, new, name): t.pop(name) for name in list(t)}))


def added(**more: Tensor) -> Edit:
    return tensors(lambda t: t.update({name.replace("__", "."): more[name] for name in more}))


def vocab(edit: Callable[[list[str]], list[str]], end: str = "\n") -> Edit:
    return put("vocab.txt", "".join(piece + end for piece in edit(list(PIECES))).encode())


def tokenizer_json(pieces: list[str] = PIECES, **changes: object) -> Edit:
    content = whole(pieces, **{"normalizer__lowercase": True, **changes})
    return put("tokenizer.json", json.dumps(content))


def header(content: object, size: int | None = None, data: bytes = b"") -> Edit:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return put(WEIGHTS, struct.pack("<Q", len(text) if size is None else size) + text + data)


def cut(name: str) -> Edit:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def longer(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"1")


def one(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def index(places: object) -> Edit:
    return both(gone(WEIGHTS), put(f"{WEIGHTS}.index.json", json.dumps(places)))


def no_change(_: Path) -> None:
    pass


CASED = [*PIECES, "Walrus"]
JAPANESE = "tokenizer_class 'BertJapaneseTokenizer' is not supported, only 'BertTokenizer' or"
cased = vocab(lambda p: [*p[:-1], "Walrus"])

# What the tokenizer's files can do: B1.2.
TOKENIZER: list[tuple[str, Edit, str]] = [
    ("cased vocabulary, nothing says so", both(cased, gone(SETTINGS)), "has capitals .'Walrus'"),
    (
        "tokenizer.json and tokenizer_config.json disagree",
        tokenizer_json(normalizer__lowercase=False),
        "do_lower_case True, but tokenizer.json lowercase False",
    ),
    (
        "tokenizer.json and vocab.txt disagree",
        tokenizer_json([*PIECES[:-1], "other"]),
        "vocab.txt and tokenizer.json have different vocabularies",
    ),
    ("no vocabulary", gone("vocab.txt"), "neither a vocab.txt nor a tokenizer.json"),
    *(
        (
            f"no {token}",
            vocab(lambda p, t=token: [x for x in p if x != t]),
            f"has no .{token[1:-1]}",
        )
        for token in SPECIAL_TOKENS
    ),
    ("a line twice", vocab(lambda p: [*p[:-1], "a"]), "has 'a' twice, in lines 13 and 14"),
    ("a blank line", vocab(lambda p: [*p[:7], "", *p[8:]]), "has a blank line, number 8"),
    ("a byte order mark", vocab(lambda p: ["\ufeff" + p[0], *p[1:]]), LOADS),
    ("CRLF", vocab(lambda p: p, "\r\n"), LOADS),
    ("spaces at the ends of lines", vocab(lambda p: [x + " " for x in p]), LOADS),
    ("a lone CR in a line", vocab(lambda p: [*p[:-1], "x\ry"]), LOADS),
    (
        "U+2028, U+0085, U+000C in lines",
        vocab(lambda p: [*p[:-3], "\u2028x", "\x85x", "\x0cx"]),
        LOADS,
    ),
    ("not UTF-8", put("vocab.txt", b"[PAD]\n\xff\n"), "not UTF-8 at byte 6"),
    ("UTF-16", put("vocab.txt", "[PAD]\n".encode("utf-16")), "not UTF-8 at byte 0"),
    ("a web page as vocabulary", put("vocab.txt", "<!DOCTYPE html>"), "it is a web page"),
    ("an empty vocabulary", put("vocab.txt", ""), "vocab.txt is no vocabulary: it is empty"),
    ("broken settings", put(SETTINGS, "{"), f"{SETTINGS} is not a readable JSON file"),
    ("settings that are a list", put(SETTINGS, "[]"), f"{SETTINGS}: expected a JSON object, got"),
    *(
        (f"do_lower_case {value!r}", settings(do_lower_case=value), "must be true or false, got")
        for value in ("false", 0)
    ),
    ("do_lower_case null", settings(do_lower_case=None), LOADS),  # as if it did not say it
    ("model_max_length absent", no_change, LOADS),  # extract cuts at max_position_embeddings
    (
        "added_tokens.json past the end",
        put("added_tokens.json", '{"[NEW]": 50}'),
        "added_tokens.json adds .*NEW.*, but not how it is found in a text",
    ),
    (
        "RobertaTokenizer",
        settings(tokenizer_class="RobertaTokenizer"),
        "'RobertaTokenizer' is not su",
    ),
    (
        "SentencePiece",
        both(gone("vocab.txt"), put("sentencepiece.bpe.model", b"\n\x0e\n")),
        "neither a vocab.txt nor a tokenizer.json",
    ),
    *(
        (f"tokenizer_class in {name}", edit(tokenizer_class="BertJapaneseTokenizer"), JAPANESE)
        for name, edit in (("config.json", config), (SETTINGS, settings))
    ),
    (
        "words of MeCab, as in cl-tohoku/bert-base-japanese",
        settings(word_tokenizer_type="mecab"),
        "word_tokenizer_type 'mecab' is not supported",
    ),
    (
        "other words in tokenizer.json",
        tokenizer_json(pre_tokenizer__type="WhitespaceSplit"),
        "another pre_tokenizer than BertPreTokenizer",
    ),
    (
        "no frame in tokenizer.json",
        tokenizer_json(post_processor=None),
        "does not frame texts as BertTokenizer does",
    ),
    (
        "special_tokens_map.json with another [UNK]",
        put("special_tokens_map.json", '{"unk_token": "<unk>"}'),
        "unk_token '<unk>' is not supported",
    ),
    (
        "special_tokens_map.json with a token that is not there",
        put("special_tokens_map.json", '{"additional_special_tokens": ["[E1]"]}'),
        "added tokens of an unknown form, or not in the vocabulary",
    ),
    ("never_split", settings(never_split=["a"]), "never_split .*'a'.* is not supported"),
    ("do_basic_tokenize", settings(do_basic_tokenize=False), "do_basic_tokenize False is not supp"),
    ("[unk] in lower case", vocab(lambda p: [x.lower() for x in p]), r"has no \[PAD\], \[UNK\]"),
    (
        "added_tokens_decoder that is a list",
        settings(added_tokens_decoder=[1]),
        "added tokens of an unknown form",
    ),
]

GAMMA = added(embeddings__LayerNorm__gamma=torch.ones(33))
BOARD = torch.ones(len(PIECES), 33)

# What the weights can do: B3.
CHECKPOINT: list[tuple[str, Edit, str]] = [
    (
        "gamma and beta",
        both(renamed("Norm.weight", "Norm.gamma"), renamed("Norm.bias", "Norm.beta")),
        LOADS,
    ),
    ("gamma and weight", GAMMA, "has embeddings.LayerNorm.*, which are the same"),
    ("with the prefix bert.", renamed("^", "bert."), LOADS),
    ("without it", no_change, LOADS),
    (
        "prefix module.",
        renamed("^", "module."),
        "has the names of a BERT with module. before them; save it without",
    ),
    (
        "prefix model.",
        renamed("^", "model."),
        "has the names of a BERT with model. before them; save it without",
    ),
    ("a decoder that is not tied", added(cls__predictions__decoder__weight=BOARD), LOADS),
    ("only decoder.bias", added(cls__predictions__decoder__bias=torch.ones(14)), LOADS),
    ("only predictions.bias", added(cls__predictions__bias=torch.ones(14)), LOADS),
    ("position_ids", added(embeddings__position_ids=torch.arange(17)[None]), LOADS),
    (
        "position_ids of another order",
        added(embeddings__position_ids=torch.ones(17).long()),
        "does not c",
    ),
    (
        "no pooler",
        tensors(lambda t: [t.pop(f"pooler.dense.{n}") for n in ("weight", "bias")]),
        LOADS,
    ),
    (
        "half a pooler",
        tensors(lambda t: t.pop("pooler.dense.bias")),
        "lacks 1 tensor: pooler.dense.bias",
    ),
    ("a tensor missing", tensors(lambda t: t.pop(KEY)), f"lacks 1 tensor: {KEY}"),
    (
        "a layer missing",
        tensors(lambda t: [t.pop(n) for n in list(t) if "layer.2" in n]),
        "lacks 16",
    ),
    ("fewer layers in config.json", config(num_hidden_layers=2), "has unexpected 16 tensors"),
    ("more layers in config.json", config(num_hidden_layers=4), "lacks 16 tensors"),
    (
        "another vocab_size",
        config(vocab_size=15),
        r"misshapen 1 tensor: embeddings.word_embeddings.weight F32 \[14, 33\] for \[15, 33\]",
    ),
    (
        "a matrix transposed",
        tensors(
            lambda t: t.update(
                {n: v.T.contiguous() for n, v in t.items() if "inter" in n and v.dim() == 2}
            )
        ),
        r"misshapen .*\[33, 50\] for \[50, 33\]",
    ),
    ("another dtype", tensors(lambda t: t.update({n: v.double() for n, v in t.items()})), LOADS),
    ("integers", tensors(lambda t: t.update({KEY: t[KEY].int()})), f"misshapen .*{KEY} I32"),
    ("NaN", tensors(lambda t: t[KEY].fill_(torch.nan)), f"NaN or infinite .* in 1 tensor: {KEY}"),
    ("no tensors", tensors(lambda t: t.clear()), "has 0 tensors, too few for 3 layers"),
    ("no config.json", gone("config.json"), "has no file config.json"),
    (
        "config.json is a directory",
        both(gone("config.json"), lambda folder: (folder / "config.json").mkdir()),
        "config.json is a directory; a file belongs there",
    ),
    ("torch_dtype float16", config(torch_dtype="float16"), LOADS),  # dtype= decides, alone
    ("an LFS pointer", put(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"), "LFS pointer"),
    (
        "TensorFlow only",
        both(gone(WEIGHTS), put("tf_model.h5", "")),
        "only tf_model.h5, which trans",
    ),
    ("index without weight_map", index({}), "has no weight_map"),
    ("index with an empty one", index({"weight_map": {}}), "has no weight_map"),
    (
        "index that leaves the folder",
        index({"weight_map": {"a": "../x.safetensors"}}),
        "no file of the",
    ),
    (
        "index that is absolute",
        index({"weight_map": {"a": "/etc/passwd"}}),
        "no file of the folder",
    ),
]

# What else: C3, by number.
FILES: list[tuple[int, Edit, str]] = [
    (1, put(WEIGHTS, b""), "it is empty.*download it again"),
    (1, put(WEIGHTS, b"1234567"), "is broken .*download it again"),
    (2, header({}, 2**63), "its header would have 9223372036854775808 bytes"),
    (2, header({}, 2**64 - 1), "its header would have 18446744073709551615 bytes"),
    (2, header({}, 100_000_001), "its header would have 100000001 bytes"),
    (3, header({}, 1000), "invalid header length"),
    (4, cut(WEIGHTS), "not fully covered.*download it again"),
    (5, longer, "not fully covered"),
    (6, header(b"nonsense"), "is broken"),
    (6, header(b"\xff\xff"), "is broken"),
    (6, header([1]), "is broken"),
    (7, header(one(offsets=(4, 8)), data=bytes(8)), "offset"),
    (7, header(one(offsets=(4, 0)), data=bytes(4)), "offset"),
    (8, header(one(shape=(2,)), data=bytes(4)), "shape"),
    (8, header(one(shape=(2**40, 2**40)), data=bytes(4)), "overflow"),
    (8, header(one(shape=(-1,)), data=bytes(4)), "is broken"),
    (9, header(one("F33"), data=bytes(4)), "unknown variant"),
    (10, tensors(lambda t: t.update({KEY: t[KEY].long()})), f"misshapen 1 tensor: {KEY} I64"),
    (10, tensors(lambda t: t.update({KEY: t[KEY].bool()})), f"misshapen 1 tensor: {KEY} BOOL"),
    (10, tensors(lambda t: t.update({KEY: t[KEY].to(torch.float8_e5m2)})), "F8_E5M2"),
    (11, header(b'{"a":' * 100_000), "recursion"),
    (
        12,
        header({str(n): one(shape=(0,), offsets=(0, 0))["a"] for n in range(200_000)}),
        "would have",
    ),
    (14, put(WEIGHTS, "<html>"), "it is a web page"),
    (14, put(WEIGHTS, b"PK\3\4" + bytes(9)), "it is a zip archive"),
    (14, put(WEIGHTS, b"\x80\2}q\0." + bytes(9)), "it is a pickle"),
    (15, gone(WEIGHTS), "has no file model.safetensors$"),
    (17, tensors(lambda t: t.pop(KEY)), f"lacks 1 tensor: {KEY}"),
    (18, added(crf__weight=torch.ones(1)), "has unexpected 1 tensor: crf.weight"),
    (18, both(renamed("^", "bert."), added(crf__weight=torch.ones(1))), LOADS),
    (18, added(classifier__weight=torch.ones(1)), LOADS),
    (19, added(**{KEY.replace(".", "__"): torch.ones(34)}), rf"{KEY} F32 \[34\] for \[33\]"),
    (20, tensors(lambda t: t[KEY].fill_(torch.inf)), f"NaN or infinite .* in 1 tensor: {KEY}"),
    (21, renamed("^", "roberta."), "has the names of a BERT with roberta. before them"),
    (22, both(gone(WEIGHTS), put("pytorch_model.bin", b"")), "only pytorch_model.bin: a pickle"),
    (
        24,
        both(gone(WEIGHTS), put("flax_model.msgpack", b"")),
        "only flax_model.msgpack, which tran",
    ),
    (25, index({"weight_map": {"a": "../model.safetensors"}}), "no file of the folder"),
    (26, index({"weight_map": {"a": "b.safetensors"}}), "has no file b.safetensors"),
    (27, index([]), "expected a JSON object, got list"),
    (
        28,
        both(index({"weight_map": {KEY: "b.safetensors"}}), put("b.safetensors", b"")),
        "it is empty",
    ),
    (29, gone("config.json"), "has no file config.json"),
    (30, put("config.json", ""), "config.json is not a readable JSON file: it is empty"),
    (30, put("config.json", b"\xff\xfe"), "config.json is not a readable JSON file"),
    (
        30,
        lambda f: (f / "config.json").write_text("\ufeff" + (f / "config.json").read_text()),
        LOADS,
    ),
    (31, put("config.json", "[]"), "expected a JSON object, got list"),
    (31, put("config.json", "null"), "expected a JSON object, got NoneType"),
    (32, config(hidden_size=34), "hidden_size 34 is not a multiple of num_attention_heads 3"),
    (33, config(num_attention_heads=0), "num_attention_heads must be an int from 1"),
    (33, config(num_attention_heads=-3), "num_attention_heads must be an int from 1"),
    (34, config(num_hidden_layers=0), "num_hidden_layers must be an int from 1"),
    (34, config(hidden_size=-33), "hidden_size must be an int from 1"),
    (35, config(hidden_size=33.0), "hidden_size must be an int from 1"),
    (35, config(hidden_size="33"), "hidden_size must be an int from 1"),
    (35, config(type_vocab_size=True), "type_vocab_size must be an int from 1"),
    (36, config(layer_norm_eps=-1), "layer_norm_eps must be a number more than 0"),
    (36, config(layer_norm_eps=float("nan")), "layer_norm_eps must be a number more than 0"),
    (36, config(layer_norm_eps=float("inf")), "layer_norm_eps must be a number more than 0"),
    (37, config(hidden_dropout_prob=1.5), "hidden_dropout_prob must be a number at least 0"),
    (38, config(hidden_act="GELU"), "hidden_act must be one of gelu, gelu_new, .*'GELU'"),
    (38, config(hidden_act=["gelu"]), "hidden_act must be one of"),
    (39, config(model_type="roberta"), "model_type 'roberta' is not supported, only 'bert' is"),
    (39, config(model_type="distilbert"), "model_type 'distilbert' is not supported"),
    (40, config(is_decoder=True), "is_decoder True is not supported"),
    (40, config(add_cross_attention=True), "add_cross_attention True is not supported"),
    (
        40,
        config(position_embedding_type="relative_key"),
        "'relative_key' is not supported, only 'abs",
    ),
    (41, config(hidden_size=10**12), "hidden_size must be an int from 1 to 10000000"),
    (41, config(num_hidden_layers=10**12), "num_hidden_layers must be an int from 1 to 10000000"),
    (41, config(num_hidden_layers=10**7), "has 55 tensors, too few for 10000000 layers"),
    (41, config(vocab_size=10**7, hidden_size=3 * 10**6), "misshapen"),
    (42, config(quantization_config={"bits": 4}), "quantization_config .* is not supported"),
    (43, put("config.json", '{"vocab_size": 1, "vocab_size": 2}'), "an object has a key twice"),
    (43, put("config.json", '{"vocab_size": %s}' % ("9" * 5000)), "Exceeds the limit"),
    (43, put("config.json", "[" * 100_000), "recursion"),
    (44, vocab(lambda p: [*p[:-1], "a"]), "has 'a' twice, in lines 13 and 14"),
    (
        45,
        vocab(lambda p: [*p, "more"]),
        "has 15 pieces in vocab.txt and 14 rows in its word embedd",
    ),
    (45, vocab(lambda p: p[:-1]), LOADS),  # with a warning
    (46, tokenizer_json(model__type="BPE"), "tokenizer of kind 'BPE', not WordPiece"),
    (47, both(cased, gone(SETTINGS)), "has capitals"),
]


def ids(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


# Wrong arguments, C3 by number: an answer that is no str is what comes out.
CALLS: list[tuple[int, Callable[[Bert], object], object]] = [
    (48, lambda b: b.tokenizer.encode(None), "a text must be str, got NoneType"),  # type: ignore[arg-type]
    (48, lambda b: b.tokenizer.encode(1), "a text must be str, got int"),  # type: ignore[arg-type]
    (48, lambda b: b.tokenizer.encode(b"a"), "a text must be str, got bytes"),  # type: ignore[arg-type]
    (
        48,
        lambda b: b.tokenizer.encode_batch([None]),
        r"texts\[0\] must be a str or a pair of them, got NoneType",
    ),  # type: ignore[list-item]
    (48, lambda b: len(b.tokenizer.encode_batch({"a"})), 1),  # type: ignore[arg-type]
    (
        49,
        lambda b: b.tokenizer.encode("a\ud800b"),
        "character 1 of the text, U.D800, is half of a surrogate pair",
    ),
    (50, lambda b: b.tokenizer.tokenize("a\0\ue000 b"), ["a", "b"]),
    (51, lambda b: b.tokenizer.encode_batch([]), []),
    (
        52,
        lambda b: b.tokenizer.encode_batch([("a", "b", "c")]),
        r"texts\[0\] must be a str or a pair of them, got tuple",
    ),  # type: ignore[list-item]
    (
        53,
        lambda b: b.tokenizer.encode("a b", max_length=1),
        "max_length 1 leaves no room for 2 added tokens",
    ),
    (53, lambda b: b.tokenizer.encode("a b", max_length=-1), "max_length -1 leaves no room"),
    (53, lambda b: b.tokenizer.encode("a b", max_length="9"), "max_length '9' leaves no room"),  # type: ignore[arg-type]
    (
        54,
        lambda b: b.tokenizer.encode_windows("a b", max_length=4, stride=4),
        "stride must be from 0 to 1 here, got 4",
    ),
    (
        55,
        lambda b: b.model(torch.ones(1, 18).long()),
        "18 tokens are more than the 17 positions of this model",
    ),
    (56, lambda b: b.model(ids([1, 14])), "input_ids go from 1 to 14, allowed is 0 to 13"),
    (56, lambda b: b.model(ids([1, -1])), "input_ids go from -1 to 1, allowed is 0 to 13"),
    (
        56,
        lambda b: b.model(ids([1, 1]), ids([0, 3])),
        "token_type_ids go from 0 to 3, allowed is 0 to 2",
    ),
    (
        57,
        lambda b: b.model(torch.ones(1, 2)),
        "must be an int64 or int32 tensor, got torch.float32",
    ),
    (57, lambda b: b.model(torch.ones(2).long()), "must have shape .B, T. .*, got .2,."),
    (57, lambda b: b.model(torch.ones(1, 2, 3).long()), "must have shape .B, T. .*, got .1, 2, 3."),
    (57, lambda b: b.model([[1, 2]]), "must be an int64 or int32 tensor, got list"),  # type: ignore[arg-type]
    (
        58,
        lambda b: b.model(torch.ones(0, 2).long()),
        "must have shape .B, T. with B and T from 1 up",
    ),
    (
        59,
        lambda b: b.model(ids([1, 2]), None, ids([1, 1, 1])),
        "attention_mask must have shape .1, 2., got .1, 3.",
    ),
    (60, lambda b: b.model(ids([1, 2]), None, ids([0, 0])).last_hidden_state.isnan().any(), False),
    (61, lambda b: b.tokenizer.decode([14]), "id 14 is outside this vocabulary, 0 to 13"),
    (61, lambda b: b.tokenizer.decode([-1]), "id -1 is outside this vocabulary, 0 to 13"),
    (63, lambda _: find_files("a/b/c"), "there is no folder 'a/b/c'"),
    (63, lambda _: find_files("../x"), "there is no folder '../x'"),
    (63, lambda _: find_files("a b"), "there is no folder 'a b'"),
    (63, lambda _: find_files(b"a"), "source must be a name or a path, got bytes"),  # type: ignore[arg-type]
    (63, lambda _: find_files(1), "source must be a name or a path, got int"),  # type: ignore[arg-type]
    (81, lambda _: find_files("a/b", "../c"), "revision must be a branch, tag or commit"),
]


# What takes a network, a process of its own or another user: C3 by number, and which test has it.
ELSEWHERE = {
    13: "test_cache.test_damaged_files_in_the_cache",
    15: "test_weights.test_no_permission",
    16: "test_checkpoint.test_a_file_that_shrinks_after_loading_does_no_harm",
    23: "test_weights.test_bad_pickles",
    62: "test_layout.test_functions_are_short_and_plain",  # no **kwargs: Python refuses it
    64: "test_hub.test_the_hub_says_no",
    65: "test_hub.test_a_missing_file_is_remembered",
    66: "test_hub.test_the_hub_answers_badly",
    67: "test_hub.test_the_hub_answers_badly",
    68: "test_hub.test_the_hub_answers_badly",
    69: "test_hub.test_what_is_missing_in_the_cache_is_told_at_once",
    70: "test_cache.test_faults",
    71: "test_cache.test_faults",
    72: "test_cache.test_faults",
    73: "test_cache.test_faults",
    74: "test_cache.test_wrong_bytes_of_the_right_length_are_never_taken",
    75: "test_cache.test_faults",
    76: "test_cache.test_damaged_files_in_the_cache",
    77: "test_cache.test_remains_of_a_broken_cache",
    78: "test_cache.test_remains_of_a_broken_cache",
    79: "test_cache.test_a_full_disk",
    80: "test_cache.test_two_processes_download_at_once",
    82: "test_hub.test_the_hub_says_no",
    83: "test_cache.test_settings_of_the_client_that_make_no_sense",
}


def check(folder: Path, edit: Edit, answer: str) -> None:
    edit(folder)
    if answer != LOADS:
        with pytest.raises(CheckpointError, match=answer) as error:
            load(folder)
        assert "\n" not in str(error.value)
        return
    mine, expected = load(folder).model.state_dict(), random_model(ODD).state_dict()
    assert mine.keys() <= expected.keys()
    assert all(torch.equal(mine[name], expected[name]) for name in mine)


@pytest.mark.parametrize(
    ("edit", "answer"), [pytest.param(*row, id=name) for name, *row in TOKENIZER + CHECKPOINT]
)
def test_tokenizers_and_checkpoints(folder: Path, edit: Edit, answer: str) -> None:
    check(folder, edit, answer)


@pytest.mark.parametrize(
    ("edit", "answer"), [pytest.param(*row, id=f"{number}") for number, *row in FILES]
)
def test_files(folder: Path, edit: Edit, answer: str) -> None:
    check(folder, edit, answer)


@pytest.mark.parametrize(
    ("call", "answer"), [pytest.param(*row, id=f"{number}") for number, *row in CALLS]
)
def test_calls(folder: Path, call: Callable[[Bert], object], answer: object) -> None:
    bert = load(folder)
    if isinstance(answer, str):
        with pytest.raises((ValueError, CheckpointError), match=answer):
            call(bert)
    else:
        assert call(bert) == answer


# What scripts/fuzz.py found, in this code or in a copy of it with one check taken out.
KEPT = sorted((Path(__file__).parent / "data" / "fuzz").iterdir())
HIDES = {  # what would be read instead
    "model.safetensors.index.json": WEIGHTS,
    "tokenizer.json": "vocab.txt",
    "pytorch_model.bin": WEIGHTS,
}


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_what_the_fuzzer_kept(folder: Path, path: Path) -> None:
    names = path.name.rpartition(".")[0].split("+")  # of two files, the first is a line
    for name, content in zip(names, path.read_bytes().split(b"\n", len(names) - 1), strict=True):
        (folder / HIDES.get(name, name)).unlink(missing_ok=True)
        (folder / name).write_bytes(content)
    for head in (None, "auto", *HEADS):
        with suppress(CheckpointError, ValueError):
            load(folder, head=head, allow_pickle=True)


def test_every_row_is_here() -> None:
    here = {number for number, *_ in FILES} | {number for number, *_ in CALLS} | {*ELSEWHERE}
    assert here == set(range(1, 84))
    for place in ELSEWHERE.values():
        module, name = place.split(".")
        tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text())
        assert any(isinstance(n, ast.FunctionDef) and n.name == name for n in tree.body), place
