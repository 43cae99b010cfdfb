"""A Ray cluster: whether one answers at an address, and how many workers it has room for.

Ray waits for minutes at a port where something else listens. So the port is asked first: a head
speaks gRPC, which is HTTP/2, and a server of that answers the client's first bytes with a SETTINGS
frame before anything is asked of it (RFC 9113, section 3.4).

Ray itself sends pickles between the machines of a cluster: whoever can submit work to one can run
any code on it, with or without this package. Use a head that you would log in to.

This module knows addresses and resources. It does not know what a worker does.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from refusal_dial.types import DialError, one_line, shown
from refusal_dial.values import spelt, text

PATIENCE = 10.0
"""Seconds that an address is given to answer."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What an HTTP/2 client says first: a fixed text, and SETTINGS without any."""
HEAD = 9
"""Bytes that a frame begins with; the fourth is its type, and SETTINGS is 4."""
TRIES = "RAY_gcs_server_port_wait_time_s"
"""Ray's own setting: how often, once a second, it looks for a head at an address."""

HINT = "; if `ray start --head` made a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to it"
"""Of an address that is given, Ray asks without a token unless it is told to send one."""


def host_and_port(address: Any) -> tuple[str, int]:
    """`10.0.0.1:6379`, `[::1]:6379` or `head:6379` in two. Raises `DialError` for anything else."""
    host, _, port = text(address).rpartition(":")
    number = spelt(port) or 0
    if not (_is_host(host) and 0 < number < 2**16):
        raise DialError(
            f"expected HOST:PORT of a Ray head such as 10.0.0.1:6379, not {shown(address)}"
        )
    return host.strip("[]"), number


def check_answers(address: str, known_as: str | None = None) -> None:
    """Raises `DialError` where nothing that could be a Ray head answers within `PATIENCE`."""
    where = host_and_port(address)
    name = address if known_as in (address, None) else f"{known_as} ({address})"
    try:
        with socket.create_connection(where, timeout=PATIENCE) as line:
            if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
                return  # it is Ray that has the certificates to ask further
            line.sendall(PREFACE)
            frame = line.recv(HEAD)
    except OSError as error:
        raise DialError(
            f"no Ray head answers at {name}: {error.strerror or error}; start one with "
            "`ray start --head`, or leave --ray-address away to compute on this machine"
        ) from error
    if frame[3:4] != b"\x04":
        raise DialError(
            f"what answers at {name} is no Ray head: give the address that `ray start --head` "
            "printed, or leave --ray-address away to compute on this machine"
        )


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to this address (`auto`: to the cluster that Ray finds here), or started here
    for as long as this lasts. A connection that is there already is used as it is.

    Raises `DialError` where Ray is not installed, and where it cannot be reached or started.
    """
    ray = installed()
    if ray.is_initialized():
        yield ray
        return
    where = "local" if address is None else _asked(address)
    if where != "local":
        check_answers(where, address)
    with _few_tries(where != "local"):
        try:
            ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False)
        except (RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
            hint = "" if where == "local" or os.environ.get("RAY_AUTH_MODE") == "token" else HINT
            why = one_line(error).rstrip(".")
            raise DialError(f"Ray at {where} cannot be used: {why}{hint}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def installed() -> Any:
    """The package, which is an extra. Raises `DialError` where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise DialError("--executor ray needs Ray: pip install 'refusal-dial[ray]'") from error
    return ray


def resources(ray: Any) -> list[Mapping[str, float]]:
    """What each node of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def places(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: float) -> int:
    """How many workers of this size nodes with these resources hold, `{"CPU": 8, "GPU": 1}` each.

    Raises `DialError` where it is none, and for a size that no worker has.
    """
    if not (cpus >= 1 and 0 <= gpus < float("inf")):
        raise DialError(
            f"a worker of {cpus} CPUs and {gpus:g} GPUs: expected at least 1 CPU and 0 GPUs"
        )
    need = {"CPU": cpus, "GPU": gpus}
    room = sum(
        min(int(node.get(kind, 0) // amount) for kind, amount in need.items() if amount)
        for node in nodes
    )
    if not room:
        held = [f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes]
        raise DialError(
            f"no node has room for a worker of {cpus} CPUs and {gpus:g} GPUs: the nodes have "
            f"{'; '.join(dict.fromkeys(held)) or 'nothing'}; give fewer --cpus-per-worker or "
            "--gpus-per-worker"
        )
    return room


def _is_host(name: str) -> bool:
    """Whether a network could be asked for this name: no empty label, none over 63 letters."""
    try:
        if name.startswith("["):
            return name.endswith("]") and bool(ipaddress.IPv6Address(name[1:-1]))
        odd = any(c in "/:[]@?#" or c.isspace() or not c.isprintable() for c in name)
        return bool(name.encode("idna")) and not odd
    except ValueError:  # UnicodeError is one
        return False


def _asked(address: str) -> str:
    """The address that Ray will ask: what `auto` finds here or in RAY_ADDRESS, and for this machine
    by any name the one that others know it by."""
    from ray._private import services  # `ray.init` asks it the same

    if address != "auto":
        host_and_port(address)
    services.find_gcs_addresses.cache_clear()
    try:
        return services.canonicalize_bootstrap_address(address) or "local"
    except (OSError, ValueError, RuntimeError) as error:
        raise DialError(
            f"--ray-address {address}: {one_line(error).rstrip('.')}; start a head with "
            "`ray start --head`, or leave --ray-address away to compute on this machine"
        ) from error


@contextmanager
def _few_tries(few: bool) -> Iterator[None]:
    """Where a server answered, one that is no head says so every time it is asked."""
    if not few or TRIES in os.environ:
        yield
        return
    os.environ[TRIES] = "3"
    try:
        yield
    finally:
        del os.environ[TRIES]
