"""Find where a checkpoint lies: a path, or a snapshot from the Hub in the cache of huggingface_hub.

It fetches no other sub-folders than loaders read, and no weights in other formats; it reads no
tensors, and does not log in (`hf` does).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from svdcut.errors import CheckpointError, HubError
from svdcut.files.filenames import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_NAME,
    CARD_NAME,
    CONFIG_BOUNDS,
    CONFIG_NAME,
    INDEX_NAME,
    SIDECAR_FOLDERS,
    SIDECARS,
    WEIGHTS_NAME,
    module_folders,
)
from svdcut.files.header import read_index
from svdcut.files.jsonfile import read_json
from svdcut.files.wrong_input import adapter_conversion_hint, conversion_hint

# As huggingface_hub's validate_repo_id, whose import costs 0.1 s, and as git for the revision.
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REVISION = r"(?!/)(?!.*(?:\.\.|//))[^\s\x00-\x1f\x7f~^:?*\[\\]+(?<!/)"
_HUB_ID = rf"(?![^@]*(?:--|\.\.))({_NAME}/{_NAME})(?<!\.git)(?:@({_REVISION}))?"
_parsed = re.compile(_HUB_ID).fullmatch
_SMALL_FILES = [*SIDECARS, CARD_NAME]
# In these patterns `*` also matches "/"; "[!s]" is for the index of any format but safetensors.
_IGNORED = ["*/*", "*[!s].index.json", "consolidated*", "trainer_state.json"]


@dataclass(frozen=True, slots=True)
class Location:
    """Where a checkpoint lies on disk, once it is fetched."""

    source: str
    """As the user named it."""

    path: Path
    revision: str | None
    """The Hub commit, for a Hub id."""


def locate(source: str | Path, *, quiet: bool = False) -> Location:
    """Return where a source lies; fetch it if it is a Hub id.

    Raises
    ------
    CheckpointError
        If the path begins with a user that is not there, and as `fetch_snapshot` does.
    HubError
        As `fetch_snapshot` does.
    """
    text = str(source)
    if isinstance(source, Path) or is_local(text):
        try:
            return Location(text, Path(text).expanduser(), None)
        except RuntimeError as error:  # of expanduser
            raise CheckpointError(f"{text}: there is no such user") from error
    folder = fetch_snapshot(text, quiet=quiet)
    return Location(text, folder, folder.name)


def is_local(source: str) -> bool:
    """Whether a source is a path, so that the Hub must not be asked.

    It is if it exists, ends in ".safetensors", or does not look like ``org/name[@revision]``.
    """
    return not _parsed(source) or source.endswith(".safetensors") or os.path.lexists(source)


def fetch_snapshot(source: str, *, quiet: bool = False) -> Path:
    """Download what svdcut needs of a checkpoint, or find it in the cache.

    Parameters
    ----------
    source : str
        A Hub id, ``org/name[@revision]``; the revision is a branch, tag or commit (default main).
    quiet : bool
        Show no progress bars, not even on a terminal.

    Returns
    -------
    Path
        A folder named by the commit, with all the weights that the index names,
        `model.safetensors`, or those of an adapter.

    Raises
    ------
    HubError
        If the Hub does not have it, refuses it or is out of reach, and the cache lacks it.
    CheckpointError
        If the repository holds no safetensors weights, or its index is not usable.
    """
    # HTTPError is the base error of the HTTP client, which each major version takes from elsewhere.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if not (match := _parsed(source)):
        raise HubError(f"{source!r} is not a Hub id", hint="expected org/name or org/name@revision")
    repo_id, revision = match[1], match[2] or "main"
    try:
        return _download(repo_id, revision, _progress_bars(quiet=quiet))
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: Xet's client
        raise _explained(error, repo_id, revision) from error
    except (LookupError, TypeError, AttributeError, AssertionError) as error:
        # What huggingface_hub raises where an answer lacks a key, or is no object at all.
        what = f"{repo_id}@{revision}: the Hub's answer has an unexpected form ({error!r:.200})"
        raise HubError(what, hint="check HF_ENDPOINT, and run again") from error


def is_cached(source: str) -> bool:
    """Whether the local cache holds something of a Hub id; nothing is asked or fetched."""
    from huggingface_hub import try_to_load_from_cache

    match = _parsed(source)
    if match is None:
        return False
    names = (CONFIG_NAME, ADAPTER_CONFIG_NAME)
    found = (try_to_load_from_cache(match[1], name, revision=match[2]) for name in names)
    return any(isinstance(path, str) for path in found)


def _download(repo_id: str, revision: str, bars: type[object]) -> Path:
    """Fetch the small files, then the weights of the commit that the first call resolved."""
    from huggingface_hub import constants, snapshot_download

    offline = constants.HF_HUB_OFFLINE
    fetch = partial(snapshot_download, repo_id, tqdm_class=bars, local_files_only=offline)
    folder = Path(fetch(revision=revision, allow_patterns=_SMALL_FILES, ignore_patterns=_IGNORED))
    weights = _weight_files(folder)
    # config.json is there already; naming it avoids a warning where no weights match.
    further = [CONFIG_NAME, *_beneath(folder), *weights]
    fetch(revision=folder.name, allow_patterns=further)
    missing = [name for name in weights if not (folder / name).is_file()]
    if missing and ((folder / INDEX_NAME).is_file() or missing == weights):
        raise _incomplete(folder, repo_id, missing)
    return folder


def _beneath(folder: Path) -> Iterator[str]:
    """Yield patterns of the files in sub-folders that loaders read."""
    modules = dict.fromkeys(module_folders(folder), (*SIDECARS, "*.safetensors"))
    for name, patterns in (SIDECAR_FOLDERS | modules).items():
        yield from (f"{name}/{pattern}" for pattern in patterns)


def _weight_files(folder: Path) -> list[str]:
    """Return the names of the files to ask for; without an index, those that there may be."""
    if (folder / INDEX_NAME).is_file():
        return read_index(folder / INDEX_NAME)[1]
    adapter = (folder / ADAPTER_CONFIG_NAME).is_file()
    return [WEIGHTS_NAME, *([ADAPTER_NAME] if adapter else [])]


def _incomplete(folder: Path, repo_id: str, missing: list[str]) -> CheckpointError:
    """Ask the Hub whether it has `missing` at all, as the cache alone may be incomplete."""
    from huggingface_hub import HfApi, constants, errors

    if constants.HF_HUB_OFFLINE:
        raise errors.LocalEntryNotFoundError(f"missing ({', '.join(missing)}).")
    files = HfApi().list_repo_files(repo_id, revision=folder.name)
    if (folder / INDEX_NAME).is_file():
        return CheckpointError(f"{repo_id}: {INDEX_NAME} names {missing[0]!r}, which is not there")
    found = [name for name in files if re.fullmatch(r"[^/]*model[^/]*\.(bin|pt|pth)", name)]
    pickled = f", only pickled ones ({found[0]!r}), which svdcut does not open" if found else ""
    try:
        config = read_json(folder / CONFIG_NAME, CONFIG_BOUNDS)
    except CheckpointError:
        config = {}
    hint = conversion_hint(repo_id, config, revision=folder.name)
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        fetch = f"hf download {repo_id} --revision {folder.name} --local-dir adapter"
        hint = f"Fetch it: {fetch}\n  {adapter_conversion_hint('adapter')}"
    what = f"{repo_id} at {folder.name} has no safetensors weights{pickled}"
    return CheckpointError(what, hint=hint if found else None)


def _explained(error: BaseException, repo_id: str, revision: str) -> HubError:
    """Say what an error of huggingface_hub means, and what to do about it."""
    from huggingface_hub import constants, errors

    name = f"{repo_id}@{revision}"
    cause = (isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__) or error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    reason = f"HTTP {status}" if status else str(cause)[:300] or repr(cause)
    listed = re.search(r"missing (\(.+?\))\.", str(error))
    uncached = f"{name} is not {f'complete in the cache {listed[1]}' if listed else 'in the cache'}"
    gated = isinstance(cause, errors.GatedRepoError)
    if isinstance(cause, errors.RevisionNotFoundError):
        what, hint = f"{repo_id} has no revision {revision!r}", "check the branch, tag or commit"
    elif gated or (status in {401, 403} and not isinstance(cause, errors.RepositoryNotFoundError)):
        what = f"the Hub refuses access to {name}: {'it is gated' if gated else reason}"
        hint = "ask for access on its page at the Hub, then: hf auth login"
    elif status in {401, 404}:  # the Hub answers 401 where an anonymous user asks for a wrong name
        what = f"{repo_id} was not found on the Hub"
        hint = f"check the name; for a private one: hf auth login; for a folder: './{repo_id}'"
    elif constants.HF_HUB_OFFLINE:
        what = f"{uncached}, and HF_HUB_OFFLINE is set"
        hint = f"unset it, or first: hf download {repo_id} --revision {revision}"
    else:
        what = f"{uncached}; download failed: {reason}"
        hint = "check the connection and HF_ENDPOINT, and run again: whole files are kept"
    if Path(repo_id).parent.is_dir():
        what = f"there is no folder {repo_id!r}, and as a Hub id: {what}"
    return HubError(what, hint=hint)


def _progress_bars(*, quiet: bool) -> type[object]:
    """Class of bars that show on a terminal only; huggingface_hub's own show in pipes and logs."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bars(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            kwargs["disable"] = quiet or None
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

    return Bars
