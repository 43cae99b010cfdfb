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
import subprocess
import sys
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

from refusal_dial.cli.command_line import host_and_port
from refusal_dial.common import DialError, log, one_line
from refusal_dial.model.loading import DTYPES, QUANTIZED, device_of, identity, load_model
from refusal_dial.run.folder import versions
from refusal_dial.run.plan import Plan, Task

CONNECT_SECONDS = 10.0
"""Seconds that an address is given to take a connection."""

ANSWER_SECONDS = 60.0
"""Seconds that Ray is given to find a head there. On a quiet machine it takes three."""

MOST_LOST = 5
"""Workers that a task may take with it before it is held to be its fault."""

WAIT_SECONDS = 60.0
"""Seconds without any worker after which the log says so."""

LOADING = -1
"""The number of no task: a worker is loading the model."""

Answer = tuple[Any, list[str]]
"""A task's rows, and what the worker logged meanwhile."""


# --------------------------------------------------------------------------------------------------
# A Ray cluster: connecting to one, and how many workers it has room for.


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to a head at this address (`auto`: the cluster that Ray finds here), or
    started here, on the loopback address, for as long as this lasts. A connection that is there
    already is used as it is.

    Raises `DialError` where Ray is not installed, and where it cannot be reached or started.
    """
    ray = installed()
    if ray.is_initialized():
        yield ray
        return
    try:
        if address is None:
            ray.init(
                address="local",
                _node_ip_address="127.0.0.1",
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        else:
            if address != "auto":
                check_listens(address)
            check_answers(address)
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
        if isinstance(error, DialError):
            raise
        raise unusable(address, one_line(error)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def unusable(address: str | None, reason: str) -> DialError:
    """The error for a Ray that cannot be reached or started."""
    if address is None:
        return DialError(f"Ray on this machine cannot be used: {reason.rstrip('.')}")
    return DialError(
        f"Ray at --ray-address {address} cannot be used: {reason.rstrip('.')}; expected the "
        "address that `ray start --head` printed (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN where it "
        "made a token); leave --ray-address away to compute on this machine"
    )


def check_answers(address: str) -> None:
    """Raises `DialError` where Ray cannot connect to a head at an address within `ANSWER_SECONDS`.

    Where something else listens Ray goes on for minutes, and what it does there cannot be stopped
    from inside its process. So another process connects first.
    """
    connect = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level=40)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", connect, address],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        reason = f"what listens there did not answer as a head does within {ANSWER_SECONDS:g} s"
        raise unusable(address, reason) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise unusable(address, one_line(ConnectionError(lines[-1])))


def check_listens(address: str) -> None:
    """Raises `DialError` where nothing takes a connection at an address: Ray would go on trying."""
    try:
        socket.create_connection(host_and_port(address), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise DialError(
            f"no Ray head answers at {address}: {error.strerror or error}; start one with "
            "`ray start --head`, or leave --ray-address away to compute on this machine"
        ) from error


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


# --------------------------------------------------------------------------------------------------
# A worker: a model of its own on some machine, and the batches of a sweep that it is asked for.
#
# What it must share with the process that asks is compared before the first batch: the versions of
# the packages, the source of this one, the weights.


COMMIT_LENGTH = 40  # digits of a hub's commit; hashes of folders and files are shorter


@dataclass(frozen=True, eq=False)
class Assignment:
    """What a worker needs to know: which model, and the plan whose tasks it will be given."""

    name: str
    revision: str | None
    device: str
    dtype: str
    device_map: str | None
    plan: Plan


class Worker:
    """What runs in an actor: a model of its own, and the tasks that it is given."""

    def open(self, assignment: Assignment) -> dict[str, str]:
        """Load the model; what this worker is, to be compared with `about` of the driver."""
        log.setLevel(logging.INFO)
        self._model = load_model(
            assignment.name,
            assignment.device,
            assignment.dtype,
            device_map=assignment.device_map,
            revision=assignment.revision,
        )
        self._plan = assignment.plan
        return about(self._model)

    def compute(self, task: Task) -> tuple[pd.DataFrame, list[str]]:
        """The rows of one task, and what was logged meanwhile."""
        with _logged() as lines:
            return self._plan.compute(self._model, task), lines


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
def _logged() -> Iterator[list[str]]:
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
# Computing the tasks of a plan, in order. A lost worker is asked for again, and its task goes to
# whoever is free first. Ray's own restarts and retries are left at their default, none: they would
# have a task wait for its own worker however long that waits for a node. No task is begun far ahead
# of the one to be written: this process holds the rows of `2 * workers` tasks at most, and that is
# all that is lost with it.


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

    Raises `DialError` for an address at which no cluster answers, for flags of a cluster without
    --executor ray, and
    for a worker that does not suit the device, or that no node has room for.
    """
    address = machines.ray_address
    if machines.executor == "local":
        for name, given in (
            ("--ray-address", address),
            ("--workers", machines.workers),
            ("--gpus-per-worker", machines.gpus_per_worker),
        ):
            if given is not None:
                raise DialError(f"{name} {given} is for --executor ray: give both, or neither")
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
    model: TransformerBridge, plan: Plan, tasks: Sequence[Task], machines: Machines
) -> Generator[pd.DataFrame, None, None]:
    """The rows of these tasks, a frame a task, in order, wherever the flags have them computed.

    Raises `DialError` for a cluster that cannot be reached or is too small for one worker, and for
    a worker with other versions of the packages or other weights than this process.
    """
    if machines.executor == "local":
        yield from (plan.compute(model, task) for task in tasks)
    elif tasks:
        yield from _on_ray(model, plan, tasks, machines)


def _on_ray(
    model: TransformerBridge, plan: Plan, tasks: Sequence[Task], machines: Machines
) -> Iterator[pd.DataFrame]:
    # 1. What a worker has to load, and what it has to have in common with this process.
    here, who = about(model), identity(model)
    device, gpus = who.device.split(":")[0], _gpus(machines, who.device)
    assignment = Assignment(
        name=who.name,
        revision=who.revision if len(who.revision) == COMMIT_LENGTH else None,
        device=device if machines.device_map is None else "auto",
        device_map=machines.device_map,
        dtype=who.dtype if who.dtype in (*DTYPES, *QUANTIZED) else "auto",
        plan=plan,
    )
    with connected(machines.ray_address) as ray:
        # 2. As many workers as there is room for.
        room = room_for_workers(resources(ray), machines.cpus_per_worker, gpus)
        workers = min(machines.workers or room, len(tasks))
        log.info("ray: %d workers on %s, for %d tasks", workers, assignment.device, len(tasks))
        made = ray.remote(Worker).options(num_cpus=machines.cpus_per_worker, num_gpus=gpus)
        # 3. Their rows in order; what they log, once.
        logged: set[str] = set()
        with closing(Pool(ray, made.remote, workers, ray.put(assignment), tasks, here)) as pool:
            for frame, lines in in_order(pool, len(tasks)):
                for line in dict.fromkeys(lines):
                    if line not in logged:
                        log.info("a worker: %s", line)
                logged.update(lines)
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


def in_order(pool: Pool, n: int) -> Iterator[Answer]:
    """The pool's answers to its first n tasks, in order."""
    todo, early = deque(range(n)), dict[int, Answer]()
    for due in range(n):
        while due not in early:
            while pool.idle and todo and todo[0] < due + 2 * pool.size:
                pool.give(todo.popleft())
            number, answer = pool.take()
            if answer is not None:
                early[number] = answer
            elif number != LOADING:
                todo.appendleft(number)
        yield early.pop(due)


@dataclass(eq=False)
class Pool:
    """So many workers, each of which loads the model, computes a task, or is idle."""

    ray: Any
    actor_of: Callable[[], Any]
    size: int
    assignment: Any
    tasks: Sequence[Task]
    here: Mapping[str, str]
    idle: deque[Any] = field(default_factory=deque)
    busy: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    lost: Counter[int] = field(default_factory=Counter)

    def give(self, number: int) -> None:
        """Have an idle worker compute the task of this number."""
        actor = self.idle.popleft()
        self.busy[actor.compute.remote(self.tasks[number])] = actor, number

    def take(self) -> tuple[int, Answer | None]:
        """Wait for what comes next: a task's number and answer, None for one that is lost with its
        worker; or `LOADING`. Raises what went wrong in a worker."""
        while len(self.busy) + len(self.idle) < self.size:
            actor = self.actor_of()
            self.busy[actor.open.remote(self.assignment)] = actor, LOADING
        done, _ = self.ray.wait(list(self.busy), timeout=WAIT_SECONDS)
        if not done:
            if all(number == LOADING for _, number in self.busy.values()):
                log.warning("no worker is up: Ray is waiting for a node with room for one")
            return LOADING, None
        actor, number = self.busy.pop(done[0])
        try:
            found = self.ray.get(done[0])
        except self.ray.exceptions.RayTaskError as error:  # it was raised in the worker
            raise _cause(error, number) from error
        except self.ray.exceptions.RayError as error:  # the actor, its node or its answer is lost
            self._bear(number, error)
            return number, None
        self.idle.append(actor)
        if number != LOADING:
            return number, found
        check_same_worker(self.here, found)
        self.lost[LOADING] = 0
        return LOADING, None

    def _bear(self, number: int, error: BaseException) -> None:
        """Take note of a loss; raise where there are too many."""
        self.lost[number] += 1
        if self.lost[number] < MOST_LOST:
            if number != LOADING:
                log.warning("a worker is lost: task %d is computed again", number)
        elif number == LOADING:
            why = f"{MOST_LOST} workers in a row were lost as they began: {one_line(error)}"
            raise DialError(why) from error
        else:
            raise DialError(
                f"task {number} has ended {MOST_LOST} workers, most likely for want of memory: try "
                "a smaller --batch-size"
            ) from error

    def close(self) -> None:
        """Let go of all workers."""
        for actor in [*self.idle, *(actor for actor, _ in self.busy.values())]:
            self.ray.kill(actor)


def _cause(error: Any, number: int) -> BaseException:
    """What went wrong in a worker, as it would have been raised here."""
    cause = error.cause
    if number == LOADING and not isinstance(cause, DialError):
        return DialError(f"a worker cannot be started: {one_line(cause)}")
    return cause if isinstance(cause, Exception) else error
