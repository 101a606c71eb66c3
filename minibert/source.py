"""Where a model came from: `Source`, and what its files say of vectors of sentences: `Pooling`.

Read next: hub.py.
"""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibert.cache import sha256, stamp
from minibert.config import CheckpointError
from minibert.files import read_json, read_object

_TYPES = "sentence_transformers.models."
POOLING_FILES = ("modules.json", "1_Pooling/config.json")
# Flags of 1_Pooling/config.json and the names of their modes.
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pooling:
    """How a model for sentences was trained to make one vector from those of its tokens.

    Source: sentence-transformers' modules.json and 1_Pooling/config.json.
    """

    mode: str  # "cls", "mean", "max", "mean_sqrt_len", "weightedmean" or "lasttoken"
    normalize: bool  # whether the vector is divided by its length

    def files(self, hidden_size: int) -> dict[str, Any]:
        """The content of the files that say this, by their names."""
        kinds = {"": "Transformer", "1_Pooling": "Pooling"}
        kinds |= {"2_Normalize": "Normalize"} if self.normalize else {}  # has no file
        modules = [
            {"idx": n, "name": str(n), "path": path, "type": f"{_TYPES}{kind}"}
            for n, (path, kind) in enumerate(kinds.items())
        ]
        flags = {flag: mode.removesuffix("_tokens") == self.mode for flag, mode in _MODES.items()}
        contents = modules, {"word_embedding_dimension": hidden_size, **flags}
        return dict(zip(POOLING_FILES, contents, strict=True))


@dataclass(frozen=True)
class Source:
    """What was loaded, for the record."""

    name: str  # as it was given to load
    commit: str  # of a model of the Hub; else ""
    files: Mapping[str, Path]  # every file that was read, by its name in the model
    stamps: Mapping[str, str]  # of the files when they were read: size and time of change
    pooling: Pooling | None  # None: the model does not say

    @functools.cached_property
    def sha256(self) -> dict[str, str]:
        """The hash of each file, in hexadecimal; computed when it is first asked for.

        Raises:
            CheckpointError: if a file is no longer the one that was loaded.
        """
        hashes = {name: sha256(path) for name, path in self.files.items()}
        for name, path in self.files.items():
            if stamp(path) != self.stamps[name]:
                raise CheckpointError(f"{path} has changed since it was loaded")
        return hashes


def warn_of_prompt(path: Path) -> None:
    """Say in the log which words config_sentence_transformers.json puts before every text."""
    said = read_object(path)
    name, prompts = said.get("default_prompt_name"), said.get("prompts")
    if isinstance(name, str) and isinstance(prompts, dict) and (prompt := prompts.get(name)):
        _log.warning("%s: texts are to begin with %.80r; minibert does not add it", path, prompt)


def read_pooling(modules: Path, pooling: Path | None) -> Pooling | None:
    """Read modules.json and 1_Pooling/config.json.

    Returns:
        None, and a line in the log, if the model has more to it than BERT, one mode of pooling and
        normalisation: a dense layer, two modes side by side, or settings in another folder.

    Raises:
        CheckpointError: if a file is broken or missing.
    """
    entries = read_json(modules)
    if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
        raise CheckpointError(f"{modules}: expected a list of JSON objects")
    kinds = [str(entry.get("type")).rpartition(".")[2] for entry in entries]
    for number, entry in enumerate(entries[:2]):  # the others have no settings
        if (path := entry.get("path")) != ("", "1_Pooling")[number]:
            kinds[number] += f" in {path}"
    if kinds[:2] == ["Transformer", "Pooling"] and kinds[2:] in ([], ["Normalize"]):
        if pooling is None:
            raise CheckpointError(f"{modules} asks for 1_Pooling/config.json, which is not there")
        settings = read_object(pooling)
        # Newer files have a name where older ones have a flag for each mode.
        modes = [mode for flag, mode in _MODES.items() if settings.get(flag) is True]
        modes = modes or [mode for mode in _MODES.values() if settings.get("pooling_mode") == mode]
        if len(modes) == 1:
            return Pooling(modes[0].removesuffix("_tokens"), normalize=len(kinds) == 3)
        kinds[1] = f"Pooling by {modes or settings.get('pooling_mode', [])}"
    _log.warning("%s: vectors of sentences need %.300r, which minibert lacks", modules, kinds)
    return None
