"""Clusters: an address is a head's or refused within seconds, and room is counted before a run.

A real head is reached in `test_executors`; here listen those that are none.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.cli.command_line import host_and_port
from refusal_dial.cli.flags import SteeringFlags
from refusal_dial.common import DialError
from refusal_dial.run import machines
from refusal_dial.run.machines import (
    check_listens,
    check_machines,
    installed,
    room_for_workers,
)

FLAGS = SteeringFlags(device="cpu", executor="ray")


def with_ray():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'refusal-dial[ray]'")


# --- what an address is


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("head.example:1", ("head.example", 1)),
        ("[::1]:6379", ("::1", 6379)),
        ("bücher.example:65535", ("bücher.example", 65535)),
    ],
)
def test_an_address_is_a_host_and_a_port(address, parts):
    assert host_and_port(address) == parts


ODD = ["", ":", "head", "head:", ":6379", "head:0", "head:-1", "head:65536", "head:99999", "head:x"]
ODD += ["head:6379x", "head:٣", "::1:6379", "[::1]", "[::1:6379", "[head]:6379", "a b:6379"]
ODD += ["ray://head:10001", "http://head:6379", "head:6379/", "a..b:6379", f"{'x' * 64}:6379"]
ODD += ["head\0:6379", "head\n:6379", "\ud800:6379", f"head:{'9' * 5000}"]


@pytest.mark.parametrize("address", ODD, ids=lambda odd: repr(odd)[:30])
def test_what_is_no_address_is_one_line_from_python_too(address):
    for ask in (host_and_port, check_listens):
        with pytest.raises(DialError, match=r"^expected") as error:
            ask(address)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("address", [6379, None, b"head:6379"])
def test_an_address_is_text(address):
    with pytest.raises(DialError, match="expected text in UTF-8, not"):
        host_and_port(address)


@given(st.text())
def test_any_text_is_an_address_or_refused(text):
    try:
        host, port = host_and_port(text)
    except DialError:
        return
    assert host
    assert 0 < port < 2**16


# --- who listens there


def test_an_address_where_nothing_listens_is_refused_at_once():
    with socket.socket() as bound:  # bound and not listening
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        for ask in (check_listens, lambda one: check_machines(replace(FLAGS, ray_address=one))):
            with pytest.raises(DialError, match=f"no Ray head answers at {address}: .*refused; st"):
                ask(address)


@pytest.mark.parametrize(
    "says", [b"", b"220 mail.example\r\n", b"HTTP/1.0 400 Bad Request\r\n\r\n"]
)
def test_what_listens_and_is_no_head_is_given_up_in_one_line(says, monkeypatch):
    """Ray itself goes on asking for minutes."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'refusal-dial[ray]'")
    import ray

    monkeypatch.setattr(machines, "ANSWER_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with suppress(OSError):  # the server is closed
                while True:
                    line, _ = server.accept()
                    line.sendall(says)
                    lines.append(line)

        lines: list[socket.socket] = []
        threading.Thread(target=answer, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(DialError, match=f"Ray at --ray-address {address} cannot be") as error:
            check_machines(replace(FLAGS, ray_address=address))
    assert "within 2 s; expected the address that `ray start --head` printed" in str(error.value)
    assert "\n" not in str(error.value)
    assert not ray.is_initialized()


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # import ray fails
    for ask in (installed, lambda: check_machines(FLAGS)):
        with pytest.raises(DialError, match=r"pip install 'refusal-dial\[ray\]'"):
            ask()


# --- room


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "room"),
    [
        ([{"CPU": 8.0}], 1, 0.0, 8),
        ([{"CPU": 8.0}, {"CPU": 3.0}], 2, 0.0, 5),  # what is left of two nodes makes no worker
        ([{"CPU": 8.0, "GPU": 2.0}], 1, 0.5, 4),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], 1, 2.0, 1),
    ],
)
def test_room_is_counted_node_by_node(nodes, cpus, gpus, room):
    assert room_for_workers(nodes, cpus, gpus) == room


@pytest.mark.parametrize(
    "nodes", [[], [{"GPU": 1.0}], [{"CPU": 1.0}] * 1000, [{"CPU": 64.0, "GPU": 0.5}]]
)
def test_no_room_says_what_there_is(nodes):
    with pytest.raises(DialError, match="no node has room for a worker of 2 CPUs and 1 GPUs") as no:
        room_for_workers(nodes, 2, 1.0)
    assert len(str(no.value)) < 250


@pytest.mark.parametrize(
    ("cpus", "gpus"), [(0, 0.0), (-1, 0.0), (1, -1.0), (1, float("nan")), (1, float("inf"))]
)
def test_a_worker_of_no_size_is_refused(cpus, gpus):
    with pytest.raises(DialError, match="expected at least 1 CPU and 0 GPUs"):
        room_for_workers([{"CPU": 8.0, "GPU": 8.0}], cpus, gpus)


@pytest.mark.parametrize(
    ("machines", "says"),
    [
        ({"cpus_per_worker": 1 + (os.cpu_count() or 1)}, "no node has room for a worker of"),
        ({"device": "auto", "device_map": "auto", "gpus_per_worker": 1e6}, "no node has room"),
        ({"gpus_per_worker": 1.0}, "model on cpu, and a worker with 1 GPUs would not"),
    ],
)
def test_a_worker_that_this_machine_has_no_room_for_is_refused_without_a_start(machines, says):
    with_ray()
    import ray

    with pytest.raises(DialError, match=says):
        check_machines(replace(FLAGS, **machines))
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"workers": 2}, "--workers 2"),
        ({"gpus_per_worker": 0.0}, "--gpus-per-worker 0.0"),
        ({"ray_address": "auto"}, "--ray-address auto"),
    ],
)
def test_flags_of_a_cluster_without_one_are_refused(given, says):
    with pytest.raises(DialError, match=f"{says} is for --executor ray: give both, or neither"):
        check_machines(replace(FLAGS, executor="local", **given))
