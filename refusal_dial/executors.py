"""Executors: where the batches of a sweep are computed. `local` is this process, `ray` a cluster.

A batch is some prompts under all cells, so whoever computes it keeps the gain of sharing one
recording; and batches do not depend on one another. `ray` asks Ray (core API) for actors of so many
CPUs or GPUs, has each load the model once, by its name, and hands out batches. The rows come back
to this process in the order of `local`: one run, written by one hand, holding the same rows.

Placing actors and telling that one is lost are Ray's. A lost one is asked for again, and its batch
goes to whoever is free first. Ray's own restarts and retries are left at their default, none: they
would have a batch wait for its own actor however long that waits for a node, and count as a retry
every look at an actor that is not back yet. No batch is begun far ahead of the one to be written:
this process holds `2 * workers` batches at most, and that is all that is lost with it.

How a cluster is reached, and what room it has, is `cluster`'s business.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cluster import connected, installed, places, resources
from refusal_dial.devices import device_of
from refusal_dial.files import located
from refusal_dial.model import identity
from refusal_dial.types import DialError, one_line
from refusal_dial.workers import Batches, Task, Worker, about, check_same

log = logging.getLogger("refusal_dial")
LOSSES = 5
"""Actors that a batch may take with it before it is held to be its fault."""
PATIENCE = 60.0
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
        places([here], machines.cpus_per_worker, gpus)
        return
    with connected(address) as ray:
        places(resources(ray), machines.cpus_per_worker, gpus)


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
        room = places(resources(ray), machines.cpus_per_worker, gpus)
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
        done, _ = self.ray.wait(list(self.busy), timeout=PATIENCE)
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
        check_same(self.here, found)
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
