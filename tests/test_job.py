"""A job: what is on disk when it is interrupted, resumed, finished, and asked for again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from refusal_dial import directions
from refusal_dial.cli.flags import SteeringFlags
from refusal_dial.common import DialError
from refusal_dial.run import job
from refusal_dial.run.folder import read_table
from refusal_dial.run.plan import SweepPlan
from refusal_dial.studies.base import load_study, prompt_rows
from refusal_dial.studies.steering import conduct, learn, steering_cells


@pytest.fixture(scope="module")
def work(qwen_folder, tmp_path_factory):
    """(study, flags, cells, learned) on a tiny model, two layers, three batches of prompts."""
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    rows = [
        {"text": f"{subset.lower()} {i} {'x' * (3 * i % 7)}", "subset": subset}
        for subset in ("HARMFUL", "EDGE", "BENIGN")
        for i in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = SteeringFlags(
        model=str(qwen_folder),
        prompts=str(path),
        refusal_tokens="I",
        device="cpu",
        layer=(1, 2),
        alphas=(-2.0, 2.0),
        alpha_unit="absolute",
        n_random=2,
        k=1,
        batch_size=5,
    )
    study = load_study(flags, flags.layer)
    learned = learn(study, flags, study.prompts[4:8])
    return study, flags, steering_cells(study, flags, learned), learned


def carry_out(work, out):
    study, flags, cells, learned = work
    flags = replace(flags, out=str(out))
    return conduct("job", study, flags, prompt_rows(study), cells, learned)


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    carry_out(work, out)
    return out


def test_interrupting_after_a_batch_keeps_it_and_resuming_gives_the_same_bytes(
    work, whole, tmp_path, monkeypatch, interrupt_after
):
    real, out = job.append, tmp_path / "run"
    with interrupt_after(2) as appended:
        carry_out(work, out)
    assert not (out / "summary.json").exists()
    assert len((out / "scores.csv").read_text().splitlines()) == 1 + sum(appended)
    computed = []
    monkeypatch.setattr(
        job, "append", lambda run, rows: (computed.append(len(rows)), real(run, rows))
    )
    carry_out(work, out)
    assert (out / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()
    assert sum(appended) + sum(computed) == len(read_table(out, "scores"))
    assert "resumed after" in (out / "log.txt").read_text()


def test_a_finished_run_is_read_and_not_computed(work, whole, monkeypatch):
    monkeypatch.setattr(SweepPlan, "compute", lambda *_: pytest.fail("computed again"))
    run, summary = carry_out(work, whole)
    assert run.finished
    assert len(summary) == len(read_table(whole, "summary"))


def test_each_layer_leaves_its_direction(work, whole):
    _, _, _, learned = work
    for direction in learned:
        layer = direction.provenance.layer
        saved = directions.load(whole / f"direction_layer{layer}.safetensors")
        assert torch.equal(saved.unit, direction.unit)
        assert saved.provenance == direction.provenance


def test_the_log_says_which_tokens_were_read(whole):
    assert "refusal tokens (listed): 'I'" in (whole / "log.txt").read_text()


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        ({"ray_address": "auto"}, "--ray-address auto is for --executor ray: give both"),
        (
            {"executor": "ray", "ray_address": "127.0.0.1:1"},
            "no Ray head answers at 127.0.0.1:1",
        ),
        ({"executor": "ray", "cpus_per_worker": 4096}, "no node has room for a worker of 4096"),
    ],
)
def test_machines_that_cannot_be_used_are_refused_before_a_run_is_opened(
    work, tmp_path, machines, message
):
    study, flags, cells, learned = work
    with pytest.raises(DialError, match=message):
        carry_out((study, replace(flags, **machines), cells, learned), tmp_path / "run")
    assert not (tmp_path / "run").exists()
