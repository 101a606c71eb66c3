import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
from conftest import REPOSITORY, Ask, SmallHub, run_python

from minibert.cache import sha256, stamp
from minibert.config import CheckpointError

LOAD = f"minibert.load({REPOSITORY!r}).config.hidden_size"
OFFLINE = f"minibert.load({REPOSITORY!r}, local_files_only=True).config.hidden_size"
LOADED = (0, "33\n")
MODEL = f"models--{REPOSITORY.replace('/', '--')}"
CLIENT = tuple(map(int, huggingface_hub.__version__.split(".")[:2]))
AGAIN = r"in the cache is not what the Hub published .* to fetch it again: rm '(.*)'\n$"


def test_hashing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"minibert" * 300_000)
    assert sha256(path) == hashlib.sha256(b"minibert" * 300_000).hexdigest()
    path.write_bytes(b"")
    assert sha256(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    path.unlink()
    assert stamp(path) == "gone"
    with pytest.raises(CheckpointError, match="cannot read .*: No such file"):
        sha256(path)


def blob(cache: Path, name: str) -> Path:
    (link,) = (cache / MODEL / "snapshots").glob(f"*/{name}")
    return link.resolve()


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_damaged_files_in_the_cache(ask: Ask, cache: Path) -> None:
    assert ask(LOAD) == LOADED
    for damage, name in (
        (flip, "config.json"),
        (cut, "vocab.txt"),
        (cut, "model.safetensors"),
        (flip, "model.safetensors"),
    ):
        damage(blob(cache, name))
        status, printed = ask(OFFLINE)
        assert status == 1
        told = re.search(f"{name} {AGAIN}", printed)
        assert told, printed
        Path(told[1]).unlink()
        assert f"{name} of {REPOSITORY} is not in the Hub's cache" in ask(OFFLINE)[1]
        assert ask(LOAD) == LOADED


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_wrong_bytes_of_the_right_length_are_never_taken(
    ask: Ask, small_hub: SmallHub, cache: Path, name: str
) -> None:
    small_hub.fault, small_hub.victim = "other bytes", name
    status, printed = ask(LOAD)
    assert status == 1
    told = re.search(f"{name} {AGAIN}", printed)
    assert told, printed
    small_hub.fault = ""
    assert re.search(AGAIN, ask(LOAD)[1]), "a later load took it for good"
    Path(told[1]).unlink()
    assert ask(LOAD) == LOADED
    assert (cache / MODEL / ".minibert_checked").is_dir()
    assert huggingface_hub.scan_cache_dir(cache).warnings == [], "our marks are in its way"


def test_a_file_is_hashed_once(ask: Ask, cache: Path) -> None:
    never = "[hashes := __import__('minibert.cache').cache, setattr(hashes, '_digest', None)] and "
    assert ask(LOAD) == LOADED
    assert ask(never + LOAD) == LOADED
    path = blob(cache, "config.json")
    os.utime(path, ns=(0, 0))
    status, printed = ask(never + LOAD)
    assert (status, "'NoneType' object is not callable" in printed) == (1, True), printed
    assert ask(LOAD) == LOADED


def test_a_cache_that_cannot_be_written_to(ask: Ask, cache: Path) -> None:
    assert ask(LOAD) == LOADED
    marks = cache / MODEL / ".minibert_checked"
    for mark in marks.iterdir():
        mark.unlink()
    marks.rmdir()
    marks.write_text("in the way")
    assert ask(LOAD) == LOADED
    cut(blob(cache, "model.safetensors"))
    assert ask(LOAD)[0] == 1


def test_a_link_out_of_the_cache(ask: Ask, cache: Path, folder: Path) -> None:
    assert ask(LOAD) == LOADED
    (link,) = (cache / MODEL / "snapshots").glob("*/vocab.txt")
    link.unlink()
    link.symlink_to(folder / "vocab.txt")
    status, printed = ask(LOAD)
    assert status == 1
    assert "vocab.txt is a link out of the Hub's cache; remove it" in printed


def test_a_model_that_was_moved_to_another_disk(ask: Ask, cache: Path, tmp_path: Path) -> None:
    assert ask(LOAD) == LOADED
    (cache / MODEL).rename(tmp_path / MODEL)
    (cache / MODEL).symlink_to(tmp_path / MODEL)
    assert ask(LOAD) == LOADED


def test_a_file_that_several_models_share(ask: Ask, cache: Path) -> None:
    """Newer clients keep one copy of equal files, under a hash of another kind."""
    assert ask(LOAD) == LOADED
    path = blob(cache, "model.safetensors")
    (cache / "blobs").mkdir()
    shared = cache / "blobs" / ("f" * 64)
    path.rename(shared)
    path.symlink_to(shared)
    assert ask(LOAD) == LOADED
    flip(shared)
    assert re.search(AGAIN, ask(LOAD)[1])


def test_a_cache_without_links(ask: Ask) -> None:
    for _ in range(2):
        status, printed = ask(LOAD, HF_HUB_DISABLE_SYMLINKS="1")
        assert (status, printed.splitlines()[0]) == LOADED[:1] + ("33",)


CLOSED = """[
    __import__('sys').addaudithook(
        lambda event, _: event in ('socket.connect', 'socket.getaddrinfo')
        and __import__('os')._exit(7)
    ),
    {},
][-1]"""


def test_a_cached_model_opens_no_socket(ask: Ask, small_hub: SmallHub) -> None:
    assert ask(CLOSED.format(LOAD))[0] == 7
    assert ask(LOAD) == LOADED
    by_commit = f"minibert.load({REPOSITORY!r}, revision={small_hub.commit!r})"
    assert ask(CLOSED.format(f"{OFFLINE}, {by_commit}, {LOAD}")) == LOADED


DOWNLOAD = f"__import__('huggingface_hub').snapshot_download({REPOSITORY!r})"


@pytest.mark.skipif(
    not hasattr(huggingface_hub, "get_cached_repo_tree"),
    reason="this client keeps no list of a model's files",
)
def test_a_download_of_the_whole_model_opens_no_socket(ask: Ask, cache: Path) -> None:
    """`hf download` keeps the list of what there is, so what there is not need not be asked for."""
    assert ask(DOWNLOAD)[0] == 0
    assert not (cache / MODEL / ".no_exist").exists()
    assert ask(CLOSED.format(LOAD)) == LOADED


MODULES = ["Transformer", "Pooling", "Normalize"]
POOLING = f"minibert.load({REPOSITORY!r}).source.pooling"
CLS = "Pooling(mode='cls', normalize=True)\n"
BY_MEAN = (
    r"is not in the Hub's cache, and cannot be fetched \((.*)\); so sentences are pooled by mean"
)


def pool(hub: SmallHub) -> None:
    """Make the model one for sentences, as BGE is."""
    modules = [{"path": "", "type": f"sentence_transformers.models.{kind}"} for kind in MODULES]
    modules[1]["path"], modules[2]["path"] = "1_Pooling", "2_Normalize"
    hub.files[REPOSITORY, "modules.json"] = json.dumps(modules).encode()
    hub.files[REPOSITORY, "1_Pooling/config.json"] = b'{"pooling_mode_cls_token": true}'


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json"])
def test_pooling_that_nobody_can_tell_is_said(
    ask: Ask, small_hub: SmallHub, cache: Path, name: str
) -> None:
    """Other programs fetch the weights, but not what sentence-transformers adds to them."""
    pool(small_hub)
    assert ask(POOLING) == (0, CLS)
    (link,) = (cache / MODEL / "snapshots").glob(f"*/{name}")
    link.unlink()
    for why, environment in (
        ("local_files_only or HF_HUB_OFFLINE is set; the cache is .*", {"HF_HUB_OFFLINE": "1"}),
        (".*refused.*; try again, or check the network", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
    ):
        status, printed = ask(POOLING, **environment)
        assert status == 0
        none, line = printed.splitlines()
        assert none == "None"
        assert re.fullmatch(f"{name} of {REPOSITORY} {BY_MEAN}", line), line
        assert re.search(why, line), line
    small_hub.requests.clear()
    assert ask(POOLING) == (0, CLS)  # asked for this file alone
    assert all(request.endswith(name) for request in small_hub.requests), small_hub.requests


def test_what_others_downloaded_is_enough(ask: Ask, small_hub: SmallHub, cache: Path) -> None:
    """The cache may lack the marks of what there is not, such as a modules.json."""
    assert ask(LOAD) == LOADED
    shutil.rmtree(cache / MODEL / ".no_exist")
    small_hub.status = 503
    small_hub.requests.clear()
    status, printed = ask(f"[{OFFLINE}, {LOAD}][1]")
    assert len(small_hub.requests) == 1  # it is not asked again for the next file
    number, *lines = printed.splitlines()
    assert (status, number) == (0, "33")
    follows = [re.split(r"\(|\); so ", line)[1:] for line in lines]
    offline, down = (
        f"local_files_only or HF_HUB_OFFLINE is set; the cache is {cache}",
        "503 Service Unavailable, Retry-After: 7; try again later",
    )
    assumed = ["vocab.txt is taken for all of the vocabulary", "no token is added"]
    assumed += ["no more than [MASK] and the like are special", "sentences are pooled by mean"]
    assert follows == [[why, what] for why in (offline, down) for what in assumed]
    small_hub.status = None
    small_hub.requests.clear()
    assert ask(LOAD) == LOADED  # asked for what nobody could tell, and for no more
    asked = {request.rpartition("/")[2] for request in small_hub.requests}
    unmarked = {"tokenizer.json", "added_tokens.json", "special_tokens_map.json", "modules.json"}
    assert asked == unmarked
    assert ask(CLOSED.format(LOAD)) == LOADED


def test_weights_that_are_not_in_the_cache(ask: Ask, small_hub: SmallHub, cache: Path) -> None:
    assert ask(LOAD) == LOADED
    blob(cache, "model.safetensors").unlink()
    small_hub.requests.clear()
    status, printed = ask(OFFLINE)
    assert status == 1
    assert re.match(
        r".*: model.safetensors of \S+ is not in the Hub's cache, and cannot be", printed
    )
    (cache / MODEL / "snapshots" / small_hub.commit / "tf_model.h5").write_text("")
    assert re.match(r".*is set; .*\), only tf_model.h5, which transformers 4", ask(OFFLINE)[1])
    assert small_hub.requests == []


def test_local_files_only(ask: Ask, small_hub: SmallHub) -> None:
    status, printed = ask(OFFLINE)
    assert status == 1
    assert (
        f"config.json of {REPOSITORY} is not in the Hub's cache, and cannot be fetched" in printed
    )
    assert "(local_files_only or HF_HUB_OFFLINE is set; the cache is /" in printed
    assert "what works without it: a folder" in printed
    assert small_hub.requests == []


def test_the_pooling_is_fetched_before_the_weights(ask: Ask, small_hub: SmallHub) -> None:
    """Else a download that is killed could lose it."""
    pool(small_hub)
    assert ask(POOLING) == (0, CLS)
    order = [request.rpartition("/")[2] for request in small_hub.requests]
    assert order.index("modules.json") < order.index("model.safetensors")
    assert small_hub.requests.index(
        f"GET /{REPOSITORY}/resolve/{small_hub.commit}/1_Pooling/config.json"
    ) < order.index("model.safetensors")


TOKENIZE = f"minibert.load_tokenizer({REPOSITORY!r}).tokenize('a')"  # without torch, so faster
TOKENIZED = (0, "['a']\n")


def test_a_file_is_asked_for_once(ask: Ask, small_hub: SmallHub) -> None:
    """But for the first, by which it is seen whether the Hub answers at all."""
    assert ask(TOKENIZE) == TOKENIZED
    heads = [request for request in small_hub.requests if request.startswith("HEAD")]
    assert sorted(set(heads)) == sorted(heads[1:])


def find(commit_of: str) -> str:
    return f"[{TOKENIZE}, minibert.hub.find_files({REPOSITORY!r}, {commit_of!r}).commit][1]"


def test_a_branch_that_moved(ask: Ask, small_hub: SmallHub) -> None:
    """The cache is taken as it is, until something downloads what is new."""
    old, new = small_hub.commit, "f" * 40
    assert ask(find("main")) == (0, f"{old}\n")
    small_hub.revisions["main"] = new
    assert ask(CLOSED.format(find("main"))) == (0, f"{old}\n")
    assert ask(find(new)) == (0, f"{new}\n")
    assert ask(CLOSED.format(find("main"))) == (0, f"{old}\n")
    assert ask(f"[{DOWNLOAD}, {find('main')}][1]")[1].splitlines()[0] == new


def test_branches_and_tags(ask: Ask, small_hub: SmallHub) -> None:
    names = ["v1.0", "release/2", "refs/pr/1"]
    small_hub.revisions |= {name: str(number) * 40 for number, name in enumerate(names)}
    commits = f"[{', '.join(map(find, names))}]"
    expected = (0, f"{[str(number) * 40 for number in range(3)]}\n")
    assert ask(commits) == expected
    assert ask(CLOSED.format(commits)) == expected


def test_a_model_that_was_renamed(ask: Ask, small_hub: SmallHub) -> None:
    small_hub.renamed["small-bert"] = REPOSITORY
    assert ask(LOAD.replace(REPOSITORY, "small-bert")) == LOADED
    assert ask(CLOSED.format(LOAD.replace(REPOSITORY, "small-bert"))) == LOADED


@pytest.mark.skipif(CLIENT < (1, 0), reason="this client shows them on a terminal only")
def test_progress_bars(ask: Ask) -> None:
    printed = ask(LOAD, TQDM_POSITION="-1")[1]  # which shows them even where nobody looks
    assert re.search(r"model.safetensors: 100%\|", printed), printed


# What can go wrong on the way. Each ends in a correct model or in one line, and whatever it leaves
# behind, the next load is right.


FAULTS = {
    "break once": None,
    "slow": None,
    "break": r".*",
    "cut": r"Consistency check failed[^`]*",
    "long": r"Consistency check failed[^`]*",
    "error 500": "500 Internal Server Error, Retry-After: 7; try again later",
    "portal": r".*(X-Repo-Commit|ETag|firewall).*",
    "hang": ".*timed out.*",
}
ROWS = [(fault, name) for fault in FAULTS for name in ("config.json", "model.safetensors")]


@pytest.mark.parametrize(("fault", "name"), ROWS[:-1])  # by the last the client waits for minutes
def test_faults(ask: Ask, small_hub: SmallHub, fault: str, name: str) -> None:
    if fault in ("break once", "long") and CLIENT < (1, 0):
        pytest.skip("this client does not try again, and keeps what was too long")
    says = FAULTS[fault]
    call, result = (TOKENIZE, TOKENIZED) if name == "config.json" else (LOAD, LOADED)
    small_hub.fault, small_hub.victim = fault, name
    status, printed = ask(call, HF_HUB_ETAG_TIMEOUT="2")
    if says is None:
        assert (status, printed.splitlines()[0] + "\n") == result, printed
    else:
        assert status == 1
        why = rf"{name} of {REPOSITORY} is not in the Hub's cache, and cannot be fetched \({says}\)"
        assert re.match(f"CheckpointError: {why}", printed.splitlines()[-1]), printed
    small_hub.fault = ""
    assert ask(call) == result


def test_a_token(ask: Ask, small_hub: SmallHub) -> None:
    small_hub.token = "hf_secret"
    status, printed = ask(LOAD)
    assert status == 1
    assert "nor a model on the Hub (a private one needs HF_TOKEN)" in printed
    status, printed = ask(LOAD, HF_TOKEN="hf_other")
    assert status == 1
    assert "(401 Unauthorized, Retry-After: 7; set HF_TOKEN to a token that is valid)" in printed
    status, printed = ask(LOAD, HF_TOKEN="hf_secret")
    assert (status, printed.splitlines()[0]) == (0, "33")
    assert "hf_secret" not in printed


START = f"import minibert; print(minibert.load({REPOSITORY!r}).config.hidden_size)"


def start(hub: SmallHub, cache: Path) -> "subprocess.Popen[str]":
    settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache)}
    environment = {**os.environ, **settings}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", START]
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_two_processes_download_at_once(small_hub: SmallHub, folder: Path, cache: Path) -> None:
    small_hub.add(REPOSITORY, folder)
    small_hub.fault = "slow"
    both = [start(small_hub, cache) for _ in range(2)]
    for process in both:
        printed, complaint = process.communicate(timeout=60)
        assert (process.returncode, printed) == (0, "33\n"), complaint


def test_killed_in_the_middle_and_then_again(ask: Ask, small_hub: SmallHub, cache: Path) -> None:
    small_hub.fault = "slow"
    weights = len(small_hub.files[REPOSITORY, "model.safetensors"])
    for _ in range(2):
        small_hub.sent = 0
        process = start(small_hub, cache)
        deadline = time.monotonic() + 60
        while small_hub.sent < weights // 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert ask(OFFLINE)[0] == 1  # half of it is nothing
    small_hub.fault = ""
    assert ask(LOAD) == LOADED


def test_a_full_disk(ask: Ask, small_hub: SmallHub, cache: Path) -> None:
    """No file may grow beyond 8 kB, as on a disk that fills up."""
    settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": small_hub.url, "HF_HUB_CACHE": str(cache)}
    code = f"""
import resource, minibert
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    minibert.load({REPOSITORY!r})
except minibert.CheckpointError as error:
    print(error)
"""
    result = run_python(code, **settings)
    assert result.returncode == 0, result.stderr
    says = f"cannot keep {REPOSITORY} in the Hub's cache \\({cache}\\): .*File too large"
    assert re.match(says, result.stdout), result.stdout + result.stderr
    assert ask(LOAD) == LOADED


def test_a_cache_that_is_a_file(ask: Ask, cache: Path) -> None:
    cache.write_text("in the way")
    status, printed = ask(LOAD)
    assert status == 1
    assert f"cannot keep {REPOSITORY} in the Hub's cache (" in printed
    assert printed.count("\n") == 1


def test_remains_of_a_broken_cache(ask: Ask, cache: Path) -> None:
    """A link to nothing and a branch that stands for no commit are fetched anew; offline, told."""
    assert ask(LOAD) == LOADED
    blob(cache, "vocab.txt").unlink()
    assert ask(LOAD) == LOADED
    for text in ("nonsense", "../../..", "\0"):
        (cache / MODEL / "refs" / "main").write_text(text)
        status, printed = ask(OFFLINE)
        assert status == 1
        assert printed.startswith(f"CheckpointError: config.json of {REPOSITORY} is not in"), (
            printed
        )
        assert printed.count("\n") == 1
        assert ask(LOAD) == LOADED


@pytest.mark.parametrize(
    "environment",
    [{"HF_ENDPOINT": "nonsense"}, {"HF_ENDPOINT": "http://[::"}, {"HF_TOKEN": "é"}],
    ids=["no URL", "half a URL", "a token that is not ASCII"],
)
def test_settings_of_the_client_that_make_no_sense(ask: Ask, environment: dict[str, str]) -> None:
    status, printed = ask(LOAD, **environment)
    if "HF_TOKEN" in environment and CLIENT < (1, 0):
        pytest.skip("this client sends any token")
    assert status == 1
    says = (
        f"CheckpointError: (config.json of {REPOSITORY} is not in|huggingface_hub cannot be used)"
    )
    assert re.match(says, printed.splitlines()[-1]), printed
