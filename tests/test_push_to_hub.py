"""A direction goes to a hub with its card, and comes back the same; a refusal is one line."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from huggingface_hub import constants

from refusal_dial import directions
from refusal_dial.common import DialError
from refusal_dial.directions import Direction, Provenance
from refusal_dial.hub import push_to_hub
from refusal_dial.report.card import DIRECTION_FILE, direction_card

AT = Provenance(20, "resid_pre", -1, "top_bottom", "me/model", "abc", 0, ("a", "b"), "hash")
DIRECTION = Direction(torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0), 3.5, AT)


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as one commit needs: it keeps what it is sent."""

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        server.asked.append(self.path)
        if server.refuses:
            return self._answer({"error": "not allowed"}, 403)
        if self.path == "/api/repos/create":
            server.made = json.loads(sent)
            return self._answer({"url": f"{server.address}/me/dial", "id": "me/dial"})
        if "/preupload/" in self.path:
            named = [one["path"] for one in json.loads(sent)["files"]]
            files = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in named]
            return self._answer({"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    server.files[value["path"]] = base64.b64decode(value["content"])
            oid = "0" * 40
            return self._answer(
                {"commitUrl": f"{server.address}/me/dial/commit/{oid}", "commitOid": oid}
            )
        return self._answer({"warnings": [], "errors": []})  # the check of a card's head

    def _answer(self, what: object, status: int = 200) -> None:
        body = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # a test before may have set it
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.asked, server.files, server.made, server.refuses = [], {}, None, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_direction_goes_up_with_its_card_and_comes_back_the_same(hub, tmp_path):
    directions.save(DIRECTION, tmp_path / DIRECTION_FILE)
    card = direction_card(DIRECTION, "me/dial", ["turns refusal, layer 20: yes"])
    files = {DIRECTION_FILE: (tmp_path / DIRECTION_FILE).read_bytes(), "README.md": card.encode()}
    assert "me/dial" in push_to_hub("me/dial", files, endpoint=hub.address)
    assert hub.files == files
    assert "private" in (
        hub.made.get("visibility"),
        *(key for key in hub.made if hub.made[key] is True),
    )
    (tmp_path / "back.safetensors").write_bytes(hub.files[DIRECTION_FILE])
    back = directions.load(tmp_path / "back.safetensors")
    assert torch.equal(back.unit, DIRECTION.unit)
    assert (back.norm, back.provenance) == (3.5, AT)


def test_what_a_hub_refuses_is_one_line(hub):
    hub.refuses = True
    with pytest.raises(DialError, match=r"the hub did not take it \(.*hf auth login") as caught:
        push_to_hub("me/dial", {"README.md": b"x"}, endpoint=hub.address)
    assert "\n" not in str(caught.value)
    hub.refuses = False
    with pytest.raises(DialError, match="expected owner/name"):
        push_to_hub("not a name/at all/", {"README.md": b"x"}, endpoint=hub.address)
    assert hub.files == {}


def test_without_a_network_nothing_is_tried(monkeypatch):
    monkeypatch.setattr("refusal_dial.hub.hub_reachable", lambda: False)
    with pytest.raises(DialError, match="cannot be reached: nothing was uploaded"):
        push_to_hub("me/dial", {"README.md": b"x"})


def test_a_card_says_where_it_was_read_and_what_was_tested():
    card = direction_card(DIRECTION, "me/dial", ["turns refusal: yes"])
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["base_model"] == "me/model"
    for said in ("| layer | 20 |", "- turns refusal: yes", "3.5", 'hf_hub_download("me/dial"'):
        assert said in text
    assert "No run of a test is beside it." in direction_card(DIRECTION, "me/dial")


def test_a_name_in_a_card_is_text():
    at = Provenance(1, "resid_pre", -1, model="a|b\n---\n<script>")
    card = direction_card(Direction(DIRECTION.unit, 1.0, at), "me/dial")
    assert "<script>" not in card.replace("\\<script\\>", "")
    assert "base_model" not in card
    assert card.count("\n---\n") == 1
