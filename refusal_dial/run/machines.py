"""Where the tasks of a run are computed: in this process, or by workers on a Ray cluster.

A worker loads the model once, by its name, and computes the tasks it is asked for. The rows come
back in the order of the tasks: one run, written by one process, with the same rows. Ray places
workers and reports lost ones; a lost task is computed again by whoever is free. Ray sends pickles
between machines: whoever can submit work to a cluster can run any code on it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cli.values import host_and_port
from refusal_dial.common import DialError, located, log, one_line
from refusal_dial.model.loading import device_of, identity, load_model
from refusal_dial.run.folder import versions

# --------------------------------------------------------------------------------------------------
# A Ray cluster: whether one answers at an address, and how many workers it has room for.
#
# Ray waits for minutes at a port where something else listens. So the port is asked first: a head
# speaks gRPC, which is HTTP/2, and a server of that answers the client's first bytes with a
# SETTINGS frame before anything is asked of it (RFC 9113, section 3.4).
#
# Ray itself sends pickles between the machines of a cluster: whoever can submit work to one can run
# any code on it, with or without this package. Use a head that you would log in to.


CONNECT_SECONDS = 10.0
"""Seconds that an address is given to answer."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What an HTTP/2 client says first: a fixed text, and SETTINGS without any."""

FRAME_BYTES = 9
"""Bytes that a frame begins with; the fourth is its type, and SETTINGS is 4."""

TRIES = "RAY_gcs_server_port_wait_time_s"
"""Ray's own setting: how often, once a second, it looks for a head at an address."""

HINT = "; if `ray start --head` made a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to it"
"""Of an address that is given, Ray asks without a token unless it is told to send one."""


def check_answers(address: str, known_as: str | None = None) -> None:
    """Raises `DialError` where nothing that could be a Ray head answers within
    `CONNECT_SECONDS`."""
    where = host_and_port(address)
    name = address if known_as in (address, None) else f"{known_as} ({address})"
    try:
        with socket.create_connection(where, timeout=CONNECT_SECONDS) as line:
            if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
                return  # it is Ray that has the certificates to ask further
            line.sendall(PREFACE)
            frame = line.recv(FRAME_BYTES)
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


def room_for_workers(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: float) -> int:
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


# --------------------------------------------------------------------------------------------------
# A worker: a model of its own on some machine, and the batches of a sweep that it is asked for.
#
# What it must share with the process that asks is compared before the first batch: the versions of
# the packages, the source of this one, the weights.


@runtime_checkable
class Batches(Protocol):
    """The batches of a sweep on this model, in order, without the first `skip`. Has to pickle."""

    def __call__(self, model: TransformerBridge, *, skip: int) -> Iterator[pd.DataFrame]: ...


@dataclass(frozen=True, eq=False)
class Task:
    """What a worker needs to know: which model, and how batches are computed on it."""

    name: str
    revision: str | None
    device: str
    dtype: str
    device_map: str | None
    batches: Batches


class Worker:
    """What runs in an actor: a model of its own, and the batches that it is asked for."""

    def open(self, task: Task) -> dict[str, str]:
        """Load the model; what this worker is, to be compared with `about` of the driver."""
        log.setLevel(logging.INFO)
        self._model = load_model(
            task.name,
            task.device,
            task.dtype,
            device_map=task.device_map,
            revision=task.revision,
        )
        self._batches = task.batches
        return about(self._model)

    def batch(self, number: int) -> tuple[pd.DataFrame, list[str]]:
        """One batch, and what was logged meanwhile."""
        with _heard() as lines:
            return next(self._batches(self._model, skip=number)), lines


def about(model: TransformerBridge) -> dict[str, str]:
    """Versions of the packages, the source of this one, and the weights: what rows depend on."""
    who = identity(model)
    found = {name: version.split("+")[0] for name, version in versions().items()}
    found["refusal-dial"] += f", source {_source()}"
    weights = f"{who.revision} ({who.architecture}, {who.n_layers} layers, {who.dtype})"
    return {**found, "the weights": weights}


@cache
def _source() -> str:
    """A hash over this package's source, for one version may be many checkouts."""
    digest, folder = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def _heard() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


def check_same_worker(here: Mapping[str, str], there: Mapping[str, str]) -> None:
    """Raises `DialError` for the first thing that a worker has otherwise than this process."""
    for name, mine in here.items():
        if there.get(name) != mine:
            raise DialError(
                f"a worker has {name} {there.get(name)} where this process has {mine}: rows of "
                "both would not belong together, so give every node the same"
            )


# --------------------------------------------------------------------------------------------------
# Executors: where the batches of a sweep are computed. `local` is this process, `ray` a cluster.
#
# A batch is some prompts under all cells, so whoever computes it keeps the gain of sharing one
# recording; and batches do not depend on one another. `ray` asks Ray (core API) for actors of so
# many CPUs or GPUs, has each load the model once, by its name, and hands out batches. The rows come
# back to this process in the order of `local`: one run, written by one hand, holding the same rows.
#
# Placing actors and telling that one is lost are Ray's. A lost one is asked for again, and its
# batch goes to whoever is free first. Ray's own restarts and retries are left at their default,
# none: they would have a batch wait for its own actor however long that waits for a node, and count
# as a retry every look at an actor that is not back yet. No batch is begun far ahead of the one to
# be written: this process holds `2 * workers` batches at most, and that is all that is lost with
# it.
#
# How a cluster is reached, and what room it has, is `cluster`'s business.


LOSSES = 5
"""Actors that a batch may take with it before it is held to be its fault."""

WAIT_SECONDS = 60.0
"""Seconds without any worker after which the log says so."""

NO_BATCH = -1

Answer = tuple[Any, list[str]]
"""A batch's rows, and what the worker logged meanwhile."""


@runtime_checkable
class Machines(Protocol):
    """The flags that say where to compute."""

    @property
    def executor(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def device_map(self) -> str | None: ...
    @property
    def ray_address(self) -> str | None: ...
    @property
    def workers(self) -> int | None: ...
    @property
    def cpus_per_worker(self) -> int: ...
    @property
    def gpus_per_worker(self) -> float | None: ...


def check_machines(machines: Machines) -> None:
    """What can be known of them before a run is opened: a cluster that is there already is asked,
    and none is started.

    Raises `DialError` for an address at which no cluster answers, or that nothing would use, and
    for a worker that does not suit the device, or that no node has room for.
    """
    address = machines.ray_address
    if machines.executor == "local":
        if address is not None:
            raise DialError(f"--ray-address {address} is for --executor ray: give both, or neither")
        return
    split = machines.device_map is not None  # then where the model is read is not known yet
    gpus = (machines.gpus_per_worker or 0.0) if split else _gpus(machines, machines.device)
    if address is None and not installed().is_initialized():
        here = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
        room_for_workers([here], machines.cpus_per_worker, gpus)
        return
    with connected(address) as ray:
        room_for_workers(resources(ray), machines.cpus_per_worker, gpus)


def compute(
    model: TransformerBridge, batches: Batches, skip: int, n: int, machines: Machines
) -> Generator[pd.DataFrame, None, None]:
    """The batches `skip` to n of a sweep, in order, wherever the flags have them computed.

    Raises `DialError` for a cluster that cannot be reached or is too small for one worker, and for
    a worker with other versions of the packages or other weights than this process.
    """
    if machines.executor == "local":
        yield from batches(model, skip=skip)
    elif skip < n:
        yield from _on_ray(model, batches, range(skip, n), machines)


def _on_ray(
    model: TransformerBridge, batches: Batches, numbers: range, machines: Machines
) -> Iterator[pd.DataFrame]:
    here, who = about(model), identity(model)
    device, gpus = who.device.split(":")[0], _gpus(machines, who.device)
    folder = located(who.name)
    task = Task(
        name=who.name,
        revision=None if folder.is_dir() or who.name == "embedded" else who.revision,
        device=device if machines.device_map is None else "auto",
        device_map=machines.device_map,
        dtype=who.dtype,
        batches=batches,
    )
    with connected(machines.ray_address) as ray:
        room = room_for_workers(resources(ray), machines.cpus_per_worker, gpus)
        workers = min(machines.workers or room, len(numbers))
        log.info("ray: %d workers on %s, for %d batches", workers, task.device, len(numbers))
        made = ray.remote(Worker).options(num_cpus=machines.cpus_per_worker, num_gpus=gpus)
        told: set[str] = set()
        with closing(Pool(ray, made.remote, workers, ray.put(task), here)) as pool:
            for frame, lines in in_order(pool, numbers):
                for line in dict.fromkeys(lines):
                    if line not in told:
                        log.info("a worker: %s", line)
                told.update(lines)
                yield frame


def _gpus(machines: Machines, device: str) -> float:
    """How many GPUs a worker takes that is to read the model on the device this process does."""
    kind = device_of(device)[0].split(":")[0]
    gpus = machines.gpus_per_worker
    gpus = float(kind == "cuda") if gpus is None else gpus
    if (kind == "cuda") != (gpus > 0):
        raise DialError(
            f"this process reads the model on {kind}, and a worker with {gpus:g} GPUs would not: "
            "give --device and --gpus-per-worker that agree"
        )
    return gpus


def in_order(pool: Pool, numbers: range) -> Iterator[Answer]:
    """The pool's answer to every number, in order."""
    todo, early = deque(numbers), dict[int, Answer]()
    for due in numbers:
        while due not in early:
            while pool.idle and todo and todo[0] < due + 2 * pool.size:
                pool.give(todo.popleft())
            number, answer = pool.take()
            if answer is not None:
                early[number] = answer
            elif number != NO_BATCH:
                todo.appendleft(number)
        yield early.pop(due)


@dataclass(eq=False)
class Pool:
    """So many actors, each of which loads the model, computes a batch, or is idle."""

    ray: Any
    actor_of: Callable[[], Any]
    size: int
    task: Any
    here: Mapping[str, str]
    idle: deque[Any] = field(default_factory=deque)
    busy: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    lost: Counter[int] = field(default_factory=Counter)

    def give(self, number: int) -> None:
        """Have an idle actor compute this batch."""
        actor = self.idle.popleft()
        self.busy[actor.batch.remote(number)] = actor, number

    def take(self) -> tuple[int, Answer | None]:
        """Wait for what comes next: a batch's number and answer, None for one that is lost with its
        actor; or `NO_BATCH`. Raises what went wrong in a worker."""
        while len(self.busy) + len(self.idle) < self.size:
            actor = self.actor_of()
            self.busy[actor.open.remote(self.task)] = actor, NO_BATCH
        done, _ = self.ray.wait(list(self.busy), timeout=WAIT_SECONDS)
        if not done:
            if all(number == NO_BATCH for _, number in self.busy.values()):
                log.warning("no worker is up: Ray is waiting for a node with room for one")
            return NO_BATCH, None
        actor, number = self.busy.pop(done[0])
        try:
            found = self.ray.get(done[0])
        except self.ray.exceptions.RayTaskError as error:  # it was raised in the worker
            raise _cause(error, number) from error
        except self.ray.exceptions.RayError as error:  # the actor, its node or its answer is lost
            self._bear(number, error)
            return number, None
        self.idle.append(actor)
        if number != NO_BATCH:
            return number, found
        check_same_worker(self.here, found)
        self.lost[NO_BATCH] = 0
        return NO_BATCH, None

    def _bear(self, number: int, error: BaseException) -> None:
        """Take note of a loss; raise where there are too many."""
        self.lost[number] += 1
        if self.lost[number] < LOSSES:
            if number != NO_BATCH:
                log.warning("a worker is lost: batch %d is computed again", number)
        elif number == NO_BATCH:
            why = f"{LOSSES} workers in a row were lost as they began: {one_line(error)}"
            raise DialError(why) from error
        else:
            raise DialError(
                f"batch {number} has ended {LOSSES} workers, most likely for want of memory: try a "
                "smaller --batch-size"
            ) from error

    def close(self) -> None:
        """Let go of all actors."""
        for actor in [*self.idle, *(actor for actor, _ in self.busy.values())]:
            self.ray.kill(actor)


def _cause(error: Any, number: int) -> BaseException:
    """What went wrong in a worker, as it would have been raised here."""
    cause = error.cause
    if number == NO_BATCH and not isinstance(cause, DialError):
        return DialError(f"a worker cannot be started: {one_line(cause)}")
    return cause if isinstance(cause, Exception) else error
