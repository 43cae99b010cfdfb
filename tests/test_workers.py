"""Workers: what is sent to one does the same there, and one that differs is refused."""

from __future__ import annotations

import runpy
from pathlib import Path

import pairs_case
import pandas as pd
import pytest
import tiny
import torch

from refusal_dial.cli import command_line as cli
from refusal_dial.common import DialError
from refusal_dial.model.loading import identity, load_model
from refusal_dial.run import job
from refusal_dial.run.machines import Assignment, Worker, about, check_same_worker
from refusal_dial.run.plan import Known

ROOT = Path(__file__).parents[1]
STUDY = ("--refusal-tokens=I", "--batch-size=4", "--layer=1,2")
SWEEPS = {
    "steer_refusal_direction": (*STUDY, "--n-random=1", "--alphas=-1,1", "--k=1"),
    "patch_sites": (*STUDY, "--gap=0"),
    "attribution_patching": (*STUDY, "--gap=0", "--refine=2"),
    "compare_prompting_steering": (
        *("--refusal-tokens=I", "--batch-size=4", "--layer=1", "--n=4", "--k=1"),
        *("--n-random=1", "--alphas=0.2", "--max-new-tokens=2"),
    ),
    "select_direction": (
        *("--refusal-tokens=I", "--batch-size=2", "--n-train=2", "--n-val=2", "--n-test=2"),
        "--positions=-1",
    ),
    "multi_objective": (
        *("--refusal-tokens=I", "--batch-size=4", "--layer=1", "--n=4", "--n-pairs=2"),
        *("--samples=1", "--max-new-tokens=2", "--refusal-layer=2", "--n-prompts=2"),
        *("--n-random=1", "--n-shuffled=0"),
    ),
    "toxicity_steering": (
        *("--layer=1", "--n=4", "--n-pairs=2", "--n-random=1", "--n-shuffled=0", "--samples=1"),
        *("--max-new-tokens=2", "--batch-size=4"),
    ),
}


class Enough(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> str:
    texts = [
        (f"{clean} {again}", f"{corrupted} {again}", "EDGE")
        for again in ("Now.", "Please.")
        for clean, corrupted, _ in pairs_case.TEXTS
    ]
    return pairs_case.write(tmp_path_factory.mktemp("prompts") / "pairs.jsonl", texts)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_sends_batches_that_do_the_same_elsewhere_and_no_model(
    name, qwen_folder, prompts, tmp_path, monkeypatch
):
    reason = "Ray is not installed: pip install 'refusal-dial[ray]'"
    cloudpickle = pytest.importorskip("ray.cloudpickle", reason=reason)
    seen = []

    def elsewhere(model, plan, tasks, machines):
        sent = cloudpickle.dumps((plan, tasks))
        weights = model.original_model.get_input_embeddings().weight
        assert weights[100].detach().numpy().tobytes() not in sent
        there, sent_tasks = cloudpickle.loads(sent)
        assert sent_tasks == tasks
        for task in tasks:
            here, frame = (one.compute(model, task) for one in (plan, there))
            pd.testing.assert_frame_equal(frame, here)
            assert len(frame) == task.rows
            seen.append(task)
            yield frame
        raise Enough  # no summary is asked for

    monkeypatch.setattr(job, "compute", elsewhere)
    given = ["--model", str(qwen_folder), "--device=cpu", *SWEEPS[name]]
    given += [] if name == "toxicity_steering" else ["--prompts", prompts]
    script = runpy.run_path(str(ROOT / "experiments" / f"{name}.py"))
    with pytest.raises(Enough):
        cli.run(script["main"], [*given, "--out", str(tmp_path / "run")])
    assert len(seen) > 1


KNOWN = Known([pd.DataFrame({"row": [i]}) for i in range(4)])


def test_a_worker_loads_the_model_by_its_name_and_says_what_it_is(qwen, qwen_folder):
    worker = Worker()
    assignment = Assignment(str(qwen_folder), None, "cpu", "float32", None, KNOWN)
    there, here = worker.open(assignment), about(qwen)
    check_same_worker(here, there)
    assert there["the weights"].startswith(identity(qwen).revision)
    frame, lines = worker.compute(KNOWN.tasks[3])
    assert list(frame["row"]) == [3]
    assert lines == []


def test_a_worker_with_other_weights_is_refused(qwen, qwen_folder, tmp_path):
    other = tiny.hf_model("Qwen2", seed=1)
    other.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    there = Worker().open(Assignment(str(tmp_path), None, "cpu", "float32", None, KNOWN))
    with pytest.raises(DialError, match=r"a worker has the weights \w+ .* where this process has"):
        check_same_worker(about(qwen), there)


def test_a_worker_with_another_package_is_refused(qwen):
    there = about(qwen) | {"torch": "1.0.0"}
    with pytest.raises(DialError, match=r"a worker has torch 1\.0\.0 where this process has"):
        check_same_worker(about(qwen), there)
    local = about(qwen)
    assert local["torch"] == torch.__version__.split("+")[0]  # a build for another device will do


def test_a_worker_without_the_model_says_so(tmp_path):
    with pytest.raises(DialError, match="no folder"):
        Worker().open(Assignment(str(tmp_path / "gone"), None, "cpu", "float32", None, KNOWN))


def test_two_loads_of_one_model_are_the_same(qwen, qwen_folder):
    check_same_worker(about(qwen), about(load_model(str(qwen_folder), "cpu")))
