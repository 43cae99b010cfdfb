"""The Hugging Face hub: whether it can be reached, and which commit of a model is in its cache.

The hub client retries for half a minute before it gives up. This asks for a connection first, so
that a machine without a network gets its answer at once. It also says which commit of a model is
meant, and where the hub's cache keeps it: transformers (from 5) loads one commit and does not say
which. It loads no model and no data set. It uploads files when asked to.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import urlparse

from refusal_dial.common import DialError, one_line

TIMEOUT_S = 3.0


@cache
def hub_reachable() -> bool:
    """True if the hub takes a connection. Behind a proxy the hub client must find out itself."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return False
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    hub = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        port = hub.port or (80 if hub.scheme == "http" else 443)
        socket.create_connection((hub.hostname or "", port), timeout=TIMEOUT_S).close()
    except (OSError, ValueError):  # no connection, or no address to connect to
        return False
    return True


def hub_config(name: str, revision: str | None = None) -> Path | None:
    """A hub model's config.json in the cache, fetched if the hub can be reached; None where it
    cannot be had, and why is for the load to say."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                name, "config.json", revision=revision, local_files_only=not hub_reachable()
            )
        )
    except Exception:  # the hub client's, the network's, the disk's
        return None


def cached(name: str, revision: str | None) -> Path | None:
    """The folder of the hub's cache that holds this revision of a model; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError, ValueError):
        return None


def commit_of(folder: Path) -> tuple[str, str] | None:
    """(model id, commit) of a folder in the hub's cache; None for any other folder."""
    from huggingface_hub import constants

    folder, cache = folder.resolve(), Path(constants.HF_HUB_CACHE).resolve()
    if not folder.is_relative_to(cache):
        return None
    inside = folder.relative_to(cache).as_posix()
    found = re.fullmatch(r"models--([^/]+)/snapshots/([0-9a-f]{40})", inside)
    return (found[1].replace("--", "/"), found[2]) if found else None


def push_to_hub(
    repo: str, files: Mapping[str, bytes], private: bool = True, endpoint: str | None = None
) -> str:
    """Upload files, by name, to a model repository as one commit; its address. The repository is
    made where there is none, private unless asked otherwise; one that is there keeps its other
    files. Who uploads is whoever is logged in to the hub (`hf auth login`). `endpoint` is another
    hub's address.

    Raises `DialError` where the hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if endpoint is None and not hub_reachable():
        raise DialError("the hub cannot be reached: nothing was uploaded")
    api = HfApi(endpoint=endpoint)
    adds = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=x) for name, x in files.items()]
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.create_commit(made.repo_id, adds, commit_message="Upload a direction")
    except Exception as error:  # of the hub's package, or of whichever HTTP client it uses
        raise DialError(
            f"the hub did not take it ({one_line(error, 160)}): expected owner/name, and to be "
            "logged in (hf auth login)"
        ) from error
    return str(made)
