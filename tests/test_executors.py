"""Executors: rows from a cluster are those of this process, whatever is lost on the way.

The cluster is real: a Ray head of one CPU, and nodes beside it (`ray.cluster_utils`). Actors are
killed, nodes taken away, and the driver killed, in the middle of a sweep. Where only the handing
out is in question, actors without a model start in a second instead of ten.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest

from refusal_dial.cli.flags import SteeringFlags
from refusal_dial.common import DialError
from refusal_dial.run import job
from refusal_dial.run import machines as executors
from refusal_dial.run.folder import read_table
from refusal_dial.run.machines import connected, resources
from refusal_dial.run.plan import Known, Task
from refusal_dial.studies.base import load_study, prompt_rows
from refusal_dial.studies.steering import conduct, learn, steering_cells, training

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "experiments" / "steer_refusal_direction.py"
BATCHES = 12
NODE = {"num_cpus": 0, "resources": {"here": 1.0}, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def cluster(monkeypatch_module):
    """A Ray head with room for one worker."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'refusal-dial[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch_module.setenv("RAY_USAGE_STATS_ENABLED", "0")
    head = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    head["_system_config"] = {"health_check_period_ms": 300}  # a dead node is missed in seconds
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def kill_workers(node) -> None:
    """SIGKILL to the actors' processes on a node."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for child in raylet.children(recursive=True):
        if "ray::Worker" in " ".join(child.cmdline()):
            child.kill()


@pytest.fixture(scope="module")
def flags(qwen_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    rows = [
        {"text": f"{subset.lower()} {i} {'x' * (3 * i % 7)}", "subset": subset}
        for subset in ("HARMFUL", "EDGE", "BENIGN")
        for i in range(BATCHES // 3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SteeringFlags(
        model=str(qwen_folder),
        prompts=str(path),
        refusal_tokens="I",
        device="cpu",
        layer=(1,),
        alphas=(-2.0, 2.0),
        alpha_unit="absolute",
        n_random=2,
        k=1,
        batch_size=1,
    )


@pytest.fixture(scope="module")
def study(flags):
    return load_study(flags, flags.layer)


def carry_out(study, flags, out):
    flags = replace(flags, out=str(out))
    edge = training(study, flags)
    learned = learn(study, flags, edge)
    cells = steering_cells(study, flags, learned, edge)
    rows = prompt_rows(study, edge)
    return conduct("steer_refusal_direction", study, flags, rows, cells, learned)


@pytest.fixture(scope="module")
def local(study, flags, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "local"
    carry_out(study, flags, out)
    return out


def on(cluster, flags, **more):
    return replace(flags, executor="ray", ray_address=cluster.address, **more)


def test_rows_of_a_cluster_are_those_of_this_process(cluster, study, flags, local, tmp_path):
    carry_out(study, on(cluster, flags), tmp_path / "run")
    assert "ray: 1 workers on cpu, for 12 tasks" in (tmp_path / "run" / "log.txt").read_text()
    assert (tmp_path / "run" / "scores.csv").read_bytes() == (local / "scores.csv").read_bytes()


@pytest.mark.slow
def test_an_actor_that_is_killed_costs_nothing_but_time(
    cluster, study, flags, local, tmp_path, monkeypatch
):
    real, appended = job.append, []

    def disturbed(run, rows):
        real(run, rows)
        appended.append(len(rows))
        if len(appended) == 1:
            kill_workers(cluster.head_node)

    monkeypatch.setattr(job, "append", disturbed)
    carry_out(study, on(cluster, flags), tmp_path / "run")
    printed = (tmp_path / "run" / "log.txt").read_text()
    assert "ray: 1 workers on cpu, for 12 tasks" in printed
    assert "computed again" in printed
    assert len(appended) == BATCHES
    ours, theirs = (read_table(path, "scores") for path in (tmp_path / "run", local))
    pd.testing.assert_frame_equal(ours, theirs, atol=1e-6, rtol=0)
    assert (tmp_path / "run" / "scores.csv").read_bytes() == (local / "scores.csv").read_bytes()


@pytest.mark.slow
def test_a_driver_that_is_killed_loses_what_was_in_flight_and_the_rerun_ends_with_the_same_bytes(
    cluster, study, flags, local, tmp_path
):
    out, whole = tmp_path / "run", (local / "scores.csv").read_bytes()
    given = [f"--{name.replace('_', '-')}={value}" for name, value in asked(flags, out).items()]
    given += ["--executor=ray", f"--ray-address={cluster.address}"]
    with (tmp_path / "printed").open("w") as printed:
        driver = subprocess.Popen([sys.executable, str(SCRIPT), *given], stderr=printed)
    scores, deadline = out / "scores.csv", time.monotonic() + 600
    while not (scores.is_file() and scores.stat().st_size > len(whole) / BATCHES):
        assert driver.poll() is None, (tmp_path / "printed").read_text()
        assert time.monotonic() < deadline, "no batch was written in ten minutes"
        time.sleep(0.002)
    driver.kill()
    driver.wait()
    left = scores.read_bytes()
    assert whole.startswith(left)
    assert len(left) < len(whole)
    carry_out(study, flags, out)  # where it was begun does not matter
    assert scores.read_bytes() == whole


def asked(flags, out) -> dict[str, object]:
    """The flags as they would be typed, but for those that have their default."""
    typed = {}
    for name, value in vars(replace(flags, out=str(out))).items():
        if value != getattr(SteeringFlags(), name):
            typed[name] = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return typed


@pytest.mark.slow
def test_a_node_with_other_code_is_refused(cluster, study, flags, tmp_path, monkeypatch):
    """Ray looks for modules in the driver's folder first, and there is a copy with another line."""
    shutil.copytree(ROOT / "refusal_dial", tmp_path / "refusal_dial")
    with (tmp_path / "refusal_dial" / "common.py").open("a") as file:
        file.write("\n# a change that nobody else has\n")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    with pytest.raises(DialError, match=r"a worker has refusal-dial .* where this process has"):
        carry_out(study, on(cluster, flags, workers=1), out)
    assert not (out / "scores.csv").exists()


# --- before there is a cluster


ONE = Known([pd.DataFrame({"row": [0]})])


def test_a_head_that_cannot_be_reached_is_refused(study, flags):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'refusal-dial[ray]'")
    with socket.socket() as bound:  # bound and not listening: nobody answers
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        there = replace(flags, executor="ray", ray_address=address)
        with pytest.raises(DialError, match=f"no Ray head answers at {address}"):
            list(executors.compute(study.model, ONE, ONE.tasks, there))


@pytest.mark.slow
def test_auto_is_the_head_that_the_environment_names(cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with connected("auto") as ray:
        assert [node["CPU"] for node in resources(ray)] == [1.0]


@pytest.mark.slow
def test_devices_that_do_not_agree_are_refused(study, flags):
    gpu = replace(flags, executor="ray", gpus_per_worker=1.0)
    with pytest.raises(DialError, match="model on cpu, and a worker with 1 GPUs"):
        list(executors.compute(study.model, ONE, ONE.tasks, gpu))


@pytest.mark.slow
def test_a_finished_sweep_starts_no_cluster(study, flags):
    nowhere = replace(flags, executor="ray", ray_address="127.0.0.1:1")
    assert list(executors.compute(study.model, ONE, [], nowhere)) == []


# --- handing out, with actors that have no model


@pytest.fixture(scope="module")
def handed(cluster):
    """`handed(batch, n)`: `batch(number)` for n numbers by actors on the cluster, in order."""

    class Light:  # a local class goes to the actor as it is, and without this module
        def open(self, batch):
            self._batch = batch
            return {"version": "1"}

        def compute(self, task):
            number = task.prompts.start
            return self._batch(number), [f"logged by {number}"]

    with connected(cluster.address) as ray:
        made = ray.remote(Light)

        def hand(batch, n, version="1", workers=2, **options):
            actor_of = made.options(**{"num_cpus": 0.25, **options}).remote
            tasks = [Task(1, range(i, i + 1)) for i in range(n)]
            pool = executors.Pool(
                ray, actor_of, workers, ray.put(batch), tasks, {"version": version}
            )
            with closing(pool):
                yield from executors.in_order(pool, n)

        yield hand


@pytest.mark.slow
def test_batches_come_in_order_and_none_is_begun_far_ahead(handed, tmp_path):
    def batch(number):
        (tmp_path / str(number)).touch()
        time.sleep(0.3 if number == 0 else 0)
        return number

    came = []
    for number, lines in handed(batch, 30):
        came.append(number)
        assert lines == [f"logged by {number}"]
        begun = {int(path.name) for path in tmp_path.iterdir()}
        assert max(begun) < number + 2 * 2
    assert came == list(range(30))


@pytest.mark.slow
def test_a_batch_that_loses_its_worker_is_computed_again(handed, tmp_path, caplog):
    def batch(number):
        if number == 2 and not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            os._exit(1)
        return number

    with caplog.at_level("WARNING", "refusal_dial"):
        assert [number for number, _ in handed(batch, 5)] == list(range(5))
    assert "a worker is lost: task 2 is computed again" in caplog.text


@pytest.mark.slow
def test_a_node_that_is_taken_away_costs_nothing_but_time(handed, cluster, tmp_path, caplog):
    """Its worker is in the middle of a batch then, and another node has room."""
    begun = tmp_path / "begun"

    def batch(number):
        if number == 2 and not begun.exists():
            begun.touch()
            time.sleep(600)
        return number

    def take_away(node):
        while not begun.exists():
            time.sleep(0.01)
        cluster.remove_node(node, allow_graceful=False)

    first = cluster.add_node(**NODE)
    came = handed(batch, 4, workers=1, num_cpus=0, resources={"here": 1.0})
    assert next(came)[0] == 0
    second = cluster.add_node(**NODE)
    taker = threading.Thread(target=take_away, args=[first])
    taker.start()
    with caplog.at_level("WARNING", "refusal_dial"):
        assert [number for number, _ in came] == [1, 2, 3]
    taker.join()
    cluster.remove_node(second, allow_graceful=False)
    assert "a worker is lost: task 2 is computed again" in caplog.text


@pytest.mark.slow
def test_a_batch_that_ends_every_worker_is_named(handed, monkeypatch):
    monkeypatch.setattr(executors, "MOST_LOST", 2)
    batches = handed(lambda number: os._exit(1) if number == 1 else number, 3, workers=1)
    with pytest.raises(DialError, match=r"task 1 has ended 2 workers.*smaller --batch-size"):
        list(batches)


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_is_raised_as_it_would_be_here(handed):
    def batch(number):
        raise ValueError("NaN in batch " + str(number))

    with pytest.raises(ValueError, match=r"^NaN in batch 0$"):
        next(handed(batch, 1))


@pytest.mark.slow
def test_a_worker_that_differs_is_refused(handed):
    with pytest.raises(DialError, match="a worker has version 1 where this process has 2"):
        next(handed(lambda number: number, 1, version="2"))


@pytest.mark.slow
def test_waiting_for_a_node_is_said(handed, caplog, monkeypatch):
    monkeypatch.setattr(executors, "WAIT_SECONDS", 0.05)  # less than an actor takes to start
    with caplog.at_level("WARNING", "refusal_dial"):
        next(handed(lambda number: number, 1, workers=1))
    assert "no worker is up" in caplog.text


@pytest.mark.slow
def test_a_worker_that_no_node_has_room_for_is_refused(handed, study, flags):
    big = replace(flags, executor="ray", cpus_per_worker=1000)
    with pytest.raises(DialError, match="no node has room for a worker of 1000 CPUs and 0 GPUs"):
        list(executors.compute(study.model, ONE, ONE.tasks, big))
