"""A hub of our own: models served to the hub client by a web server of this machine, as the hub
serves them, or laid in the hub client's cache by hand."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

FIRST, SECOND = "a" * 40, "b" * 40


def use(monkeypatch: pytest.MonkeyPatch, cache: Path, address: str | None = None) -> None:
    """Let the hub client, in this process, use this cache, and the hub at this address or none."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", address is None)
    monkeypatch.setattr("refusal_dial.hub.hub_reachable", lambda: address is not None)
    for module in ("model.loading", "model.gguf", "scoring.classifiers"):
        monkeypatch.setattr(f"refusal_dial.{module}.hub_reachable", lambda: address is not None)
    # transformers keeps the client that it made first, with the address of an earlier hub
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    if address is not None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def lay(cache: Path, name: str, folder: Path, commit: str = FIRST, ref: str = "main") -> Path:
    """Put a model's folder in the cache, as the hub client does; its place there."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    return Path(shutil.copytree(folder, repository / "snapshots" / commit))


@contextmanager
def served(
    name: str, commits: dict[str, Path], refs: dict[str, str]
) -> Iterator[tuple[str, list[str]]]:
    """(address, paths asked for) of a hub that has one model: folders by commit, commits by ref."""
    asked: list[str] = []

    def found(path: str) -> tuple[str, bytes | None]:
        """The commit that a path means, and what is there."""
        match = re.fullmatch(rf"/(?:api/models/)?{name}(?:/(\w+)/([^/]+)(?:/(.+))?)?", path)
        kind, ref, file = match.groups() if match else ("", "", "")
        commit = refs.get(ref or "main", ref or "")
        folder = commits.get(commit, Path("/nowhere"))
        if kind == "resolve" and (folder / file).is_file():
            return commit, (folder / file).read_bytes()
        if kind in (None, "revision") and folder.is_dir():
            return commit, json.dumps({"id": name, "sha": commit, "siblings": []}).encode()
        return commit, None

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(path := unquote(self.path.split("?")[0]))
            commit, content = found(path)
            self.send_response(404 if content is None else 200)
            if content is None:
                missing = "Entry" if commit in commits else "Revision"
                self.send_header("X-Error-Code", f"{missing}NotFound")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET  # noqa: N815 - what http.server calls it

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
