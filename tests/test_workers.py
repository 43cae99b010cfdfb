"""A worker loads what it is named, and one that differs is refused.

That a plan does the same where it is sent is checked in `small_runs`, for every experiment.
"""

from __future__ import annotations

import pandas as pd
import pytest
import tiny
import torch

from refusal_dial.common import DialError
from refusal_dial.model.loading import identity, load_model
from refusal_dial.run.machines import Assignment, Worker, about, check_same_worker
from refusal_dial.run.plan import Known

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
