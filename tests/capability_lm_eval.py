"""Run in an environment of lm-eval (see `tool_env`): its steered model on a local task.

python capability_lm_eval.py MODEL VECTOR TASKS OUT    TASKS a folder of .yaml, OUT a .json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: str, vector: str, tasks: str, out: str) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.hf_steered import SteeredModel
    from lm_eval.tasks import TaskManager

    model = SteeredModel(folder, vector, device="cpu", dtype="float32", batch_size=4)
    found = simple_evaluate(
        model=model,
        tasks=["our_facts"],
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"]["our_facts"], key=lambda one: one["doc_id"])
    logp = [[float(pair[0]) for pair in one["filtered_resps"]] for one in samples]
    known = {"logp": logp, "acc": found["results"]["our_facts"]["acc,none"]}
    Path(out).write_text(json.dumps(known))


if __name__ == "__main__":
    main(*sys.argv[1:])
