"""What the tests share: vocabularies, random models, folders in the Hub's layout, a small Hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import minibert
from minibert.bert import Bert
from minibert.config import BertConfig, CheckpointError
from minibert.glossary import checkpoint_names
from minibert.hooks import capture
from minibert.hub import find_files
from minibert.loading import new_head
from minibert.model import BertModel
from minibert.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"

PIECES = [*SPECIAL_TOKENS, "i", "am", "the", "wa", "##l", "##rus", ".", "a", "b"]

# Nothing about it is a power of two or a multiple of another, so that no axis can pass for another.
ODD = BertConfig(
    vocab_size=len(PIECES),
    hidden_size=33,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=50,
    max_position_embeddings=17,
    type_vocab_size=3,
)


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """A file of the project's shared data, which lies beside the repository, not in it."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} of the project's shared data, which is not here")
        return path

    return find


@pytest.fixture
def vocabulary() -> Callable[[str], Path]:
    """The vocab.txt of a released model, such as "bert-base-cased"."""

    def find(name: str) -> Path:
        path = SHARED / "vocab" / f"{name}.txt"
        if path.exists():
            return path
        try:
            return find_files(f"google-bert/{name}").require("vocab.txt")
        except CheckpointError as error:
            pytest.skip(f"no vocabulary of {name}: neither shared data nor the Hub ({error})")

    return find


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    try:
        folder = find_files("minilm").folder
    except CheckpointError as error:
        pytest.skip(str(error))
    assert folder is not None
    return folder


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> Bert:  # noqa: ARG001
    return minibert.load("minilm")


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw every parameter, biases and LayerNorm included: what is 0 or 1 hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_matrix = parameter.dim() == 2
            width = parameter.shape[-1] if is_matrix and "embedding" not in name else 1
            is_norm = name.endswith("weight") and not is_matrix
            scale = 1.5 / width**0.5 if is_matrix else 0.3
            parameter.copy_(draw * scale + (1.0 if is_norm else 0.0))


def random_model(
    config: BertConfig, dtype: torch.dtype = torch.float32, seed: int = 0
) -> BertModel:
    with torch.device("meta"):
        model = BertModel(config)
    model = model.to(dtype).to_empty(device="cpu").eval()
    randomise(model, seed)
    return model


def random_bert_with(
    name: str,
    labels: tuple[str, ...] = (),
    problem_type: str = "single_label_classification",
    dtype: torch.dtype = torch.float32,
) -> Bert:
    """A small random model with a head of which every parameter is random, too."""
    bert = Bert(ODD, WordPieceTokenizer(PIECES, lowercase=True), random_model(ODD, dtype))
    bert = new_head(bert, name, labels, problem_type)
    assert bert.head is not None
    word = bert.model.embeddings.word.weight.detach().clone()
    randomise(bert.head, seed=2)
    bert.model.embeddings.word.weight.data.copy_(word)  # a tied decoder was drawn anew
    return bert


def random_batch(config: BertConfig, batch: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, segments and a mask whose rows are padded by different amounts (row 0 by none)."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(config.vocab_size, (batch, tokens), generator=generator)
    segments = torch.randint(config.type_vocab_size, (batch, tokens), generator=generator)
    lengths = torch.tensor([max(1, tokens - 2 * row) for row in range(batch)])
    return ids, segments, (torch.arange(tokens) < lengths[:, None]).long()


def write_folder(
    folder: Path, model: BertModel, pieces: list[str] = PIECES, prefix: str = ""
) -> Path:
    """Save a model in the Hub's layout, independently of what minibert itself would write."""
    folder.mkdir(exist_ok=True)
    config = {"model_type": "bert", **dataclasses.asdict(model.config)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), "utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    names = checkpoint_names(model.config, model.pooler is not None)
    state = model.state_dict()
    tensors = {prefix + theirs: state[own] for own, theirs in names.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def whole(pieces: list[str] = PIECES, **changes: Any) -> dict[str, Any]:
    """A tokenizer.json, as `tokenizers` writes it."""
    content: dict[str, Any] = {
        "added_tokens": [
            {"id": number, "content": token, "special": True, "normalized": False}
            for number, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": False,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {piece: number for number, piece in enumerate(pieces)},
        },
    }
    for path, value in changes.items():
        *outer, key = path.split("__")
        place = content
        for name in outer:
            place = place[name]
        place[key] = value
    return content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small random model, in the Hub's layout."""
    return write_folder(tmp_path / "model", random_model(ODD))


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Give up the rights of root, for whom no file is closed, until the test ends."""
    if not hasattr(os, "geteuid"):
        pytest.skip("files have no such permissions here")
    before = os.geteuid()

    def become() -> None:
        if before == 0:
            for folder in (tmp_path, *tmp_path.parents):
                if "pytest-of" in str(folder):
                    folder.chmod(0o755)
            os.seteuid(65534)

    yield become
    os.seteuid(before)


class SmallHub(ThreadingHTTPServer):
    """The routes of the Hub that downloading uses, on the loopback address.

    As the Hub does, it answers for small files itself, under git's hash of them, and for weights
    sends the client on to another host, under their sha256.

    Attributes:
        files: (repository, file name) -> content.
        revisions: branch or tag -> commit.
        renamed: old name of a repository -> its name now.
        status: what every request is answered with instead, if it is set.
        fault: what goes wrong with each file that is sent: "break" (ends half-way), "break once",
            "slow", "cut" (and announced so), "long", "other bytes", "error 500", "portal" (some
            other server answers), "hang"; "" for nothing.
        victim: the one file that `status` and `fault` hit; "" for each.
        token: what a client must send, if it is set.
        requests: "METHOD path" of each request so far.
        sent: how many bytes of files were sent so far.
    """

    commit = "0123456789abcdef0123456789abcdef01234567"
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _SmallHubHandler)
        self.files: dict[tuple[str, str], bytes] = {}
        self.revisions = {"main": self.commit}
        self.renamed: dict[str, str] = {}
        self.status: int | None = None
        self.error_code = ""
        self.fault = ""
        self.victim = ""
        self.token = ""
        self.requests: list[str] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repository: str, folder: Path) -> None:
        self.files |= {
            (repository, str(path.relative_to(folder))): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }

    def handle_error(self, *_: object) -> None:  # a client that was killed
        pass


class _SmallHubHandler(BaseHTTPRequestHandler):
    server: SmallHub

    @property
    def fault(self) -> str:
        return self.server.fault if self.path.endswith(self.server.victim) else ""

    def do_HEAD(self) -> None:
        if self.fault == "hang":
            time.sleep(30)
        self._answer()

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            self._list()
        else:
            self._send(self._answer())

    def _answer(self) -> bytes:
        """Send the headers of [/cdn]/{repository}/resolve/{revision}/{file}; gives the body."""
        hub = self.server
        is_cdn = self.path.startswith("/cdn/")
        repository, is_file, rest = self.path[1:].removeprefix("cdn/").partition("/resolve/")
        if is_file:  # newer clients also ask for things of their own
            hub.requests.append(f"{self.command} {self.path}")
        if repository in hub.renamed:
            return self._redirect(307, f"/{hub.renamed[repository]}/resolve/{rest}")
        quoted, _, name = rest.partition("/")
        commit = hub.revisions.get(unquote(quoted), quoted)
        status, error_code = self._status(repository, commit, name, is_cdn)
        body = hub.files[repository, name] if status == 200 else b""
        is_large = status == 200 and name.endswith((".safetensors", ".bin"))
        is_elsewhere = is_large and not is_cdn
        start = int((self.headers["Range"] or "bytes=0-")[6:].partition("-")[0])
        self.send_response(302 if is_elsewhere else 206 if start else status)
        for header, value in (("X-Error-Code", error_code), ("Retry-After", "7")):
            if value and status >= 400:
                self.send_header(header, value)
        if self.fault != "portal":
            self._describe(body, is_large, commit)
        if is_elsewhere:
            self.send_header("Location", f"http://localhost:{hub.server_port}/cdn{self.path}")
            body = b""
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        body = self._damaged(body)[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return body

    def _redirect(self, status: int, place: str) -> bytes:
        self.send_response(status)
        self.send_header("Location", place)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return b""

    def _status(self, repository: str, commit: str, name: str, is_cdn: bool) -> tuple[int, str]:
        hub = self.server
        sent = self.headers["Authorization"]
        may_read = is_cdn or not hub.token or sent == f"Bearer {hub.token}"
        is_hit = self.path.endswith(hub.victim)
        answers = [
            (hub.status is not None and is_hit, (hub.status or 0, hub.error_code)),
            (not may_read, (401, "" if sent else "RepoNotFound")),
            (all(repository != known for known, _ in hub.files), (404, "RepoNotFound")),
            (commit not in hub.revisions.values(), (404, "RevisionNotFound")),
            ((repository, name) not in hub.files, (404, "EntryNotFound")),
            (self.fault == "error 500" and self.command == "GET", (500, "")),
        ]
        return next((answer for holds, answer in answers if holds), (200, ""))

    def _describe(self, body: bytes, is_large: bool, commit: str) -> None:
        self.send_header("X-Repo-Commit", commit)
        if is_large:
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(body)))
        else:
            git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            self.send_header("ETag", f'"{git}"')

    def _damaged(self, body: bytes) -> bytes:
        if self.command == "GET" and body:
            if self.fault == "cut":
                return body[:-10]
            if self.fault == "long":
                return body + b"1234567890"
            if self.fault == "other bytes":
                return body[:-1] + bytes([body[-1] ^ 1])
        return body

    def _send(self, body: bytes) -> None:
        hub, fault = self.server, self.fault if body else ""
        end = len(body) // 2 if fault.startswith("break") else len(body)
        if fault == "break once":
            hub.fault = ""
        block = max(1, end // 20) if fault == "slow" else max(1, end)
        for start in range(0, end, block):
            self.wfile.write(body[start : min(start + block, end)])
            hub.sent += block
            if fault == "slow":
                time.sleep(0.1)

    def _list(self) -> None:
        """Answer /api/models/{repository}/tree/{revision} and .../revision/{revision}."""
        repository = re.split("/(?:tree|revision)/", self.path.removeprefix("/api/models/"))[0]
        names = [name for known, name in self.server.files if known == repository]
        tree = [{"type": "file", "path": name, "oid": "0" * 40, "size": 1} for name in names]
        siblings = [{"rfilename": name} for name in names]
        info = {"id": repository, "sha": self.server.revisions["main"], "siblings": siblings}
        body = json.dumps(tree if "/tree/" in self.path else info).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def small_hub() -> Iterator[SmallHub]:
    hub = SmallHub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, where environment variables are read anew."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def their_model(model: BertModel, attention: str = "eager") -> torch.nn.Module:
    """transformers' BertModel with the same weights and dtype, given to it name by name."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        **dataclasses.asdict(model.config), attn_implementation=attention
    )
    theirs = transformers.BertModel(config, add_pooling_layer=model.pooler is not None)
    theirs = theirs.to(next(model.parameters()).dtype).eval()
    state = model.state_dict()
    names = checkpoint_names(model.config, model.pooler is not None)
    theirs.load_state_dict({names[own]: tensor for own, tensor in state.items()})
    return theirs  # type: ignore[no-any-return]


def errors_by_state(
    model: BertModel, theirs: torch.nn.Module, batch: tuple[Tensor, ...]
) -> list[float]:
    """The largest difference at real positions, of each state from 0 to L, and of the pooler."""
    ids, segments, mask = batch
    with torch.no_grad():
        with capture(model, "hidden_states") as seen:
            output = model(ids, segments, mask)
        expected = theirs(
            ids, token_type_ids=segments, attention_mask=mask, output_hidden_states=True
        )
    real = mask.bool()
    errors = [
        (ours[real] - their[real]).abs().max().item()
        for ours, their in zip(seen.hidden_states, expected.hidden_states, strict=True)
    ]
    if output.pooler_output is not None:
        errors.append((output.pooler_output - expected.pooler_output).abs().max().item())
    return errors


def on_a_terminal(*command: str, columns: int = 80) -> str:
    """What a command prints when its output is a terminal, as a person would see it."""
    controller, terminal = pty.openpty()
    environment = {
        **os.environ,
        "COLUMNS": str(columns),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    root = Path(__file__).parents[1]
    process = subprocess.Popen(command, stdout=terminal, env=environment, cwd=root)
    os.close(terminal)
    printed = b""
    try:
        while block := os.read(controller, 1 << 16):
            printed += block
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(controller)
    text = printed.decode().replace("\r\n", "\n")
    assert process.wait(timeout=60) == 0, text
    return text


REPOSITORY = "somebody/small-bert"

Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where `ask` keeps the Hub's cache."""
    return tmp_path / "cache"


# Importing torch takes seconds. One process does it, and has a child for each `ask`.
MOTHER = """
import json, os, sys, warnings
import torch, safetensors.torch
for line in sys.stdin:
    code, environment, output, errors = json.loads(line)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which stand still
        child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.environ.update(environment)
for number, path in enumerate((os.devnull, output, errors)):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
exec(code)
"""


@pytest.fixture(scope="session")
def mother() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", MOTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process


@pytest.fixture
def ask(
    small_hub: SmallHub, folder: Path, cache: Path, tmp_path: Path, mother: subprocess.Popen[str]
) -> Ask:
    """Load something from the small Hub; gives the exit status and what was printed.

    Each call is a process: the client reads its environment when it is imported.
    """
    small_hub.add(REPOSITORY, folder)

    def run(call: str, **environment: str) -> tuple[int, str]:
        code = f"""
import minibert
try:
    print({call})
except (minibert.CheckpointError, ValueError) as error:
    raise SystemExit(f"{{type(error).__name__}}: {{error}}")
"""
        settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": small_hub.url, "HF_HUB_CACHE": str(cache)}
        printed = [tmp_path / "stdout", tmp_path / "stderr"]
        job = [code, {**settings, **environment}, *map(str, printed)]
        assert mother.stdin is not None
        assert mother.stdout is not None
        mother.stdin.write(json.dumps(job) + "\n")
        mother.stdin.flush()
        status = int(mother.stdout.readline())
        return status, "".join(path.read_text() for path in printed)

    return run
