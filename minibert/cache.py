"""One file of the Hub, through the cache of the Hub's own client: fetched, and checked.

The client compares the length of a download with what was announced, not its content, and takes a
file in the cache as it is. But the cache names each file by the hash of what was published:
sha256, or for small files git's own sha1. `fetch` compares them, once a file.

HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they
mean everywhere. HF_ENDPOINT is trusted as the Hub is. Nothing here needs torch.
Read next: source.py.
"""

import functools
import hashlib
import http.client
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

import huggingface_hub  # what it needs itself, it imports when it is used

from minibert.config import CheckpointError

_MARKS = ".minibert_checked"  # in a model's folder of the cache: a file for each that passed
_HASH = "[0-9a-f]{64}|[0-9a-f]{40}"
_ADVICE = {
    401: "set HF_TOKEN to a token that is valid",
    403: "set HF_TOKEN to a token that may read the model",
    404: "is HF_ENDPOINT right?",
    429: "wait some minutes, or set HF_TOKEN, which allows more",
}

_answered: set[str] = set()  # the models of which the Hub has answered this process

_log = logging.getLogger(__name__)


def fetch(repository: str, name: str, revision: str, local_files_only: bool) -> Path | None:
    """The path of a file of the Hub in its cache; None if the model has no such file.

    What the cache has under a revision is taken without asking the Hub, even if a branch has moved
    on since. So is the absence of a file, which the cache remembers from an answer of the Hub, or
    from a download of the whole model. The Hub is asked for what the cache says nothing of.

    Args:
        repository: such as "google-bert/bert-base-cased"; with name and revision, already checked
            to be nothing that a path could be made of.
        name: such as "config.json", which is asked for before the others.
        revision: branch, tag or commit.
        local_files_only: never ask the Hub.

    Raises:
        ConnectionError: if the cache says nothing of the file, and nor does the Hub now; says why.
        CheckpointError: if there is no such model, or the file is not what was published.
    """
    _check_client()
    try:
        known = _look_up(repository, name, revision)
        if known is None and not is_offline(local_files_only):
            known = _download(repository, name, revision)
    except Exception as error:  # those of whichever HTTP library the client is built on
        if _says_no(error):
            return None
        raise _translate(repository, name, error) from error
    if known is None:
        why = "local_files_only or HF_HUB_OFFLINE is set; the cache is"
        raise ConnectionError(f"{why} {_cache()}")
    if not known:
        return None
    _check_place(Path(known))
    _check_content(Path(known))
    return Path(known)


def _check_client() -> None:
    """The Hub's client reads its environment when its parts are first used."""
    try:
        _ = huggingface_hub.try_to_load_from_cache, huggingface_hub.errors
    except Exception as error:
        raise CheckpointError(f"huggingface_hub cannot be used: {error}") from error


def is_offline(local_files_only: bool) -> bool:
    """Whether the Hub is not to be asked, by argument or by HF_HUB_OFFLINE."""
    return local_files_only or bool(huggingface_hub.constants.HF_HUB_OFFLINE)


def list_files(repository: str, revision: str) -> list[str]:
    """The names of a model's files, for an error to tell; none if the Hub does not say."""
    with suppress(Exception):  # another error is about to be raised
        return huggingface_hub.list_repo_files(repository, revision=revision)
    return []


def stamp(path: Path) -> str:
    """What changes when a file does: its size, time of change and number on the disk."""
    try:
        status = path.stat()
    except OSError:
        return "gone"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def sha256(path: Path) -> str:
    """The hash of a file, computed once per process unless it changes."""
    return _sha256(path, stamp(path))


@functools.cache
def _sha256(path: Path, _stamp: str) -> str:
    return _digest(path, hashlib.sha256())


def _digest(path: Path, digest: "hashlib._Hash") -> str:
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def _look_up(repository: str, name: str, revision: str) -> str | None:
    """What the cache has: a path; "" for a file that there is not; None if that is not known."""
    known = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
    if known is None and re.fullmatch(_HASH, revision):
        with suppress(Exception):  # an older client, or only part of the model was downloaded
            listed = huggingface_hub.get_cached_repo_tree(repository, revision=revision)
            return None if any(file.path == name for file in listed) else ""
    return known if known is None or isinstance(known, str) else ""


def _download(repository: str, name: str, revision: str) -> str:
    if repository not in _answered:
        # Ask first, and briefly: the download itself would go on trying for half a minute.
        url = huggingface_hub.hf_hub_url(repository, name, revision=revision)
        with suppress(huggingface_hub.errors.EntryNotFoundError):  # which the download remembers
            huggingface_hub.get_hf_file_metadata(url)
        _answered.add(repository)
    return huggingface_hub.hf_hub_download(repository, name, revision=revision)


def _cache() -> Path:
    return Path(huggingface_hub.constants.HF_HUB_CACHE)


def _check_place(path: Path) -> None:
    """A file must lie in the cache, or where its user moved the model's folder of it."""
    model = path.parents[2]  # models--NAME/snapshots/COMMIT/FILE; or FOLDER/FILE
    model = model if model.name.startswith("models--") else model.parent
    if not any(path.resolve().is_relative_to(home.resolve()) for home in (_cache(), model)):
        raise CheckpointError(f"{path} is a link out of the Hub's cache; remove it")


def _check_content(path: Path) -> None:
    """Compare a file with the hash that the cache stores it under.

    A file that passed is not hashed again until it changes; its mark lies in the cache. Where the
    cache has no links (Windows without developer mode), or a mirror gives names of another kind,
    nobody knows what the content should be, which the log says.
    """
    # One step only: the blob may be a link too, to a file that several models share.
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    blob = Path(os.path.normpath(blob))
    if not re.fullmatch(_HASH, blob.name):
        _log.info("%s: not checked, since the cache has no hash of it", path)
        return
    mark, now = blob.parents[1] / _MARKS / blob.name, stamp(blob)
    with suppress(OSError):
        if mark.read_text() == now:
            return
    if _published_hash(blob) != blob.name:
        raise CheckpointError(
            f"{path.name} in the cache is not what the Hub published (it was cut or damaged); "
            f"to fetch it again: rm '{blob}'"
        )
    with suppress(OSError):  # a cache that cannot be written to is hashed each time
        mark.parent.mkdir(exist_ok=True)
        draft = mark.with_name(f"{mark.name}.{os.getpid()}")
        draft.write_text(now)
        draft.replace(mark)


def _published_hash(blob: Path) -> str:
    """The content's hash, of the kind that the file's name is: sha256, or git's sha1 of a blob."""
    if len(blob.name) == 64:
        return sha256(blob)
    return _digest(blob, hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False))


def _says_no(error: Exception) -> bool:
    """Whether the Hub says that the model has no such file."""
    errors = huggingface_hub.errors
    is_local = isinstance(error, errors.LocalEntryNotFoundError)
    return isinstance(error, errors.EntryNotFoundError) and not is_local


def _translate(repository: str, name: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        where = str(error.filename or _cache())
        return CheckpointError(f"cannot keep {repository} in the Hub's cache ({where}): {error}")
    errors = huggingface_hub.errors
    nowhere = "is neither a folder here nor a model on the Hub (a private one needs HF_TOKEN)"
    for kind, says in (
        (errors.GatedRepoError, "is gated: ask for access on its page, then set HF_TOKEN"),
        (errors.RepositoryNotFoundError, nowhere),
        (errors.RevisionNotFoundError, "has no such revision on the Hub"),
    ):
        if isinstance(error, kind):  # what was cached before it was closed or taken away may do
            refusal = CheckpointError if name == "config.json" else ConnectionError
            return refusal(f"{repository} {says}")
    return ConnectionError(_reason(error))


def _reason(error: Exception) -> str:
    """Why the Hub did not give a file, and what to do."""
    responses = (getattr(cause, "response", None) for cause in (error, error.__cause__))
    response = next((one for one in responses if one is not None), None)
    if response is None:
        text = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        return f"{text.partition(' Please retry')[0]}; try again, or check the network"
    status = response.status_code
    said = response.headers.get("X-Error-Message") or http.client.responses.get(status, "")
    if wait := response.headers.get("Retry-After"):
        said += f", Retry-After: {wait}"
    advice = _ADVICE.get(status, "try again later" if status >= 500 else "see the model's page")
    return f"{status} {said}; {advice}"
