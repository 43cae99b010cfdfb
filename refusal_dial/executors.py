"""Executors: where the batches of a sweep are computed. `local` is this process, `ray` a cluster.

A batch is some prompts under all cells, so whoever computes it keeps the gain of sharing one
recording; and batches do not depend on one another. `ray` asks Ray (core API) for actors of so many
CPUs or GPUs, has each load the model once, by its name, and hands out batches. The rows come back
to this process in the order of `local`: one run, written by one hand, holding the same rows.

Placing actors, starting them again and telling that one is lost are Ray's. What is left here is a
window: a batch lost with its actor is handed to the next that is free (the actor may wait long for
another node), and no batch is begun that is far ahead of the one to be written, so this process
holds `2 * workers` batches at most. Lost with this process is what that window holds.

Ray itself sends pickles between the machines of a cluster: whoever can submit work to one can run
any code on it, with or without this package. Use a head that you would log in to.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.files import located
from refusal_dial.model import identity, one_line
from refusal_dial.types import DialError
from refusal_dial.workers import Batches, Task, Worker, about, check_same

log = logging.getLogger("refusal_dial")
LOSSES = 5
"""Actors that a batch may take with it before it is held to be its fault."""
PATIENCE = 60.0
"""Seconds without any worker after which the log says so."""


@runtime_checkable
class Machines(Protocol):
    """The flags that say where to compute."""

    @property
    def executor(self) -> str: ...
    @property
    def ray_address(self) -> str | None: ...
    @property
    def workers(self) -> int | None: ...
    @property
    def cpus_per_worker(self) -> int: ...
    @property
    def gpus_per_worker(self) -> float | None: ...


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
    gpus = machines.gpus_per_worker
    device = who.device.split(":")[0]
    gpus = float(device == "cuda") if gpus is None else gpus
    if (device == "cuda") != (gpus > 0):
        raise DialError(
            f"this process reads the model on {device}, and a worker with {gpus:g} GPUs would not: "
            "give --device and --gpus-per-worker that agree"
        )
    folder = located(who.name)
    task = Task(
        name=who.name,
        revision=None if folder.is_dir() or who.name == "embedded" else who.revision,
        device=device,
        dtype=who.dtype,
        batches=batches,
    )
    with _cluster(machines) as ray:
        room = _places(ray, machines.cpus_per_worker, gpus)
        workers = min(machines.workers or room, len(numbers))
        log.info("ray: %d workers on %s, for %d batches", workers, task.device, len(numbers))
        actor = ray.remote(Worker).options(
            num_cpus=machines.cpus_per_worker, num_gpus=gpus, max_restarts=-1
        )
        told: set[str] = set()
        actors = [actor.remote() for _ in range(workers)]
        for frame, lines in _in_order(ray, actors, ray.put(task), numbers, here):
            for line in dict.fromkeys(lines):
                if line not in told:
                    log.info("a worker: %s", line)
            told.update(lines)
            yield frame


def _in_order(
    ray: Any, actors: list[Any], task: Any, numbers: range, here: Mapping[str, str]
) -> Iterator[tuple[pd.DataFrame, list[str]]]:
    """What the actors return for every number, in order."""
    todo, lost = deque(numbers), Counter[int]()
    early: dict[int, tuple[pd.DataFrame, list[str]]] = {}
    flying: dict[Any, tuple[Any, int | None]] = {}  # None: the actor is loading the model

    def open_in(actor: Any) -> None:
        flying[actor.open.options(max_task_retries=LOSSES).remote(task)] = actor, None

    idle: list[Any] = []
    for actor in actors:
        open_in(actor)
    for due in numbers:
        while due not in early:
            while idle and todo and todo[0] < due + 2 * len(actors):
                actor, given = idle.pop(), todo.popleft()
                flying[actor.batch.remote(given)] = actor, given
            done, _ = ray.wait(list(flying), timeout=PATIENCE)
            if not done:
                if all(number is None for _, number in flying.values()):
                    log.warning("no worker is up: Ray is waiting for a node with room for one")
                continue
            actor, number = flying.pop(done[0])
            try:
                found = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise _cause(error, number) from error
            except ray.exceptions.RayError as error:  # the actor, its node or its answer is gone
                if number is None:
                    raise DialError(f"a worker cannot be started: {one_line(error)}") from error
                lost[number] += 1
                if lost[number] == LOSSES:
                    raise DialError(
                        f"batch {number} has ended {LOSSES} workers, most likely for want of "
                        "memory: try a smaller --batch-size"
                    ) from error
                log.warning("a worker is lost, and batch %d is computed again", number)
                todo.appendleft(number)
                open_in(actor)
                continue
            if number is None:
                check_same(here, found)
            else:
                early[number] = found
            idle.append(actor)
        yield early.pop(due)


def _cause(error: Any, number: int | None) -> BaseException:
    """What went wrong in a worker, as it would have been raised here."""
    cause = error.cause
    if number is None and not isinstance(cause, DialError):
        return DialError(f"a worker cannot be started: {one_line(cause)}")
    return cause if isinstance(cause, Exception) else error


@contextmanager
def _cluster(machines: Machines) -> Iterator[Any]:
    """Ray, connected, or started here for as long as this lasts."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise DialError("--executor ray needs Ray: pip install 'refusal-dial[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    address = machines.ray_address or "local"
    _check_reachable(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (RuntimeError, ConnectionError, ValueError, ray.exceptions.RayError) as error:
        raise DialError(f"Ray at {address} cannot be used: {one_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise DialError(
            f"no Ray head answers at {address} ({error.strerror or error}): start one with "
            "`ray start --head`, or leave --ray-address away to compute on this machine"
        ) from error


def _places(ray: Any, cpus: int, gpus: float) -> int:
    """How many workers of this size the cluster holds. Raises `DialError` where it is none."""
    need = {"CPU": cpus, "GPU": gpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        min(int(node.get(kind, 0) // amount) for kind, amount in need.items() if amount)
        for node in nodes
    )
    if not room:
        held = [f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes]
        raise DialError(
            f"no node has room for a worker of {cpus} CPUs and {gpus:g} GPUs: the nodes have "
            f"{'; '.join(held)}"
        )
    return room
