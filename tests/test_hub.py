"""Whether the hub can be reached is asked once, of the right address, and never raises."""

from __future__ import annotations

import socket

import pytest

from refusal_dial import hub
from refusal_dial.hub import hub_reachable

VARIABLES = ("HF_HUB_OFFLINE", "HF_ENDPOINT")
VARIABLES += ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    hub_reachable.cache_clear()
    yield
    hub_reachable.cache_clear()


@pytest.fixture
def asked(monkeypatch):
    """The addresses asked for a connection; each is refused."""
    addresses = []

    def refuse(address, timeout):
        addresses.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    return addresses


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        (None, ("huggingface.co", 443)),
        ("https://mirror.example", ("mirror.example", 443)),
        ("http://mirror.example/hub", ("mirror.example", 80)),
        ("http://localhost:8080", ("localhost", 8080)),
    ],
)
def test_a_refused_connection_means_unreachable(endpoint, address, asked, monkeypatch):
    if endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert hub_reachable() is False
    assert hub_reachable() is False
    assert asked == [address]  # asked once


def test_a_taken_connection_means_reachable(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub_reachable() is True


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline_by_choice_asks_nobody(value, asked, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert hub_reachable() is False
    assert asked == []


@pytest.mark.parametrize("name", VARIABLES[2:])
def test_behind_a_proxy_the_hub_client_must_find_out(name, asked, monkeypatch):
    monkeypatch.setenv(name, "http://proxy:3128")
    assert hub_reachable() is True
    assert asked == []


@pytest.mark.parametrize("endpoint", ["http://x:port", "http://x:99999", "http://" + "a" * 70])
def test_an_address_that_is_none_is_unreachable(endpoint, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert hub_reachable() is False


def test_a_silent_hub_is_given_up_within_the_stated_time(monkeypatch):
    waits = []

    def silent(address, timeout):
        waits.append(timeout)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    assert hub_reachable() is False
    assert waits == [hub.TIMEOUT_S]
