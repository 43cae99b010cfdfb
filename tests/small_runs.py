"""Every experiment, run once a session on a tiny random model; other tests look at what it left.

A small run is made the way a person makes one, from a command line: its `--dry-run` first, then the
run itself. Its rows come from a plan that has been through pickle, as a worker on another machine
receives it. The processes of a parallel test session share the folder, and a lock lets one of them
make each run.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from filelock import FileLock
from script_case import load
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cli import command_line as cli
from refusal_dial.model.loading import load_model
from refusal_dial.run import forecast, job
from refusal_dial.run.folder import close_log
from refusal_dial.run.machines import Machines
from refusal_dial.run.plan import Plan, Task
from refusal_dial.studies import base, continuation

STEER = "{study} --layer 1 --alphas -1,0,1 --n-random 1 --batch-size 40"
REPLIES = "{study} --n-random 1 --max-new-tokens 3 --batch-size 12"
OPENINGS = (
    "{model} --layer 1 --alphas 0,1 --n 3 --n-pairs 3 --n-random 1 --max-new-tokens 2"
    " --samples 2 --batch-size 4"
)
PATCH = "{study} --layer 1,2 --gap 0 --batch-size 4 --n-pairs 4"
TYPED = {
    "score_models": "{study} --batch-size 7",
    "steer_refusal_direction": f"{STEER} --layer 1,2 --controls random,length",
    "steering_holdout_control": STEER,
    "steering_balanced": f"{STEER} --controls shuffled,folds",
    "steering_random_baseline": STEER,
    "conditional_steering": f"{STEER} --alphas 0.5,1 --rate 0.5",
    "eval_direction_on_xstest": f"{REPLIES} --layer 1 --alphas -1,1",
    "caa_refusal": f"{REPLIES} --layer 1,2 --n-pairs 2 --n 4 --alphas 1",
    "compare_prompting_steering": f"{REPLIES} --layer 2 --n 2 --alphas 1",
    "toxicity_steering": f"{OPENINGS} --layer 0,1 --alphas=-1,0,1 --n-shuffled 1",
    "analyze_layers": f"{OPENINGS} --layer all --alphas=-1,0,1",
    "conditional_toxicity": f"{OPENINGS} --n-pairs 12 --rate 0.5",
    "multi_objective": f"{OPENINGS} --refusal-layer 2 --refusal-alphas 0,0.5 --n-prompts 3"
    " --prompts {prompts} --refusal-tokens I",
    "patch_sites": f"{PATCH} --way both",
    "patch_resid_pre": f"{PATCH} --way noise",
    "patch_last_k": f"{PATCH} --k 2 --site mlp_out",
    "attribution_patching": f"{PATCH} --roles all --refine 5 --way both",
    "steer_positions": "{study} --layer 1 --alphas -1,1 --n-random 1 --words 2 --n 4 --n-replies 2"
    " --max-new-tokens 2 --batch-size 8",
    "capability": "{study} --layer 1 --alphas=-1,1 --n-random 1 --n-items 3 --n-texts 2 --n 4"
    " --n-replies 3 --max-new-tokens 2 --batch-size 4",
    "refusal_subspace": "{study} --layer 1 --k 2 --ways cone --steps 2 --rows 2 --n 4"
    " --pushes 0.1,0.5 --n-random 1 --batch-size 8",
    "refusal_kinds": "{study} --layer 1 --least 4 --k 1 --alphas=-0.3,0.3 --n-random 1 --n 6"
    " --n-steered 3 --n-splits 2 --n-resamples 20 --batch-size 8",
    "select_direction": "{study} --n-train 4 --n-val 3 --n-test 3 --max-kl 1e9 --min-induce -1e9"
    " --positions=-2,-1 --batch-size 2",
    "verify_direction": "{direction} {study} --layer 2 --reference contrast --n-random 2"
    " --n-permutations 19 --n-test 8 --n-replies 3 --max-new-tokens 2",
    "decompose_direction": "{study} --layer 2 --gap 0 --n-pairs 4 --n-top 3 --n-neurons 4"
    " --n-random 2 --n-permutations 99 --gate-pairs 2 --batch-size 4",
    "map_direction": "{study} --positions=-2,-1 --n-permutations 99 --n-check 12 --n-prompts 4"
    " --batch-size 4 --alphas=0.02,0.6",
    "calibrate": "{study} --part null --layer 1 --n-experiments 10 --n-learn 6 --n-report 2"
    " --n-random 2",
}
WITHOUT_A_RUN = {"validate_judge"}  # reads labelled files
THINGS = ("bank", "hole", "far well", "house", "garden", "big old tree", "x", "yy", "zzz", "w")
THINGS += ("small box", "red door", "long road", "cup", "old gate", "lamp")
_load = cache(load_model)  # a model of these settings is loaded once a process


@dataclass(frozen=True)
class SmallRun:
    """What one experiment left: its folder, and what it and its dry run printed and wrote."""

    folder: str
    printed: str
    dry_printed: str
    dry_written: tuple[str, ...]


@dataclass(frozen=True)
class Material:
    """What small runs are made of: a model, prompts in matched pairs, a file with a direction."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "qwen2"

    @property
    def prompts(self) -> Path:
        return self.root / "prompts.jsonl"

    @property
    def direction(self) -> Path:
        return self.root / "direction.pt"


def material(root: Path) -> Material:
    """The model, prompts and direction in `root`, written by the first process that asks."""
    made = Material(root)
    root.mkdir(exist_ok=True)
    with FileLock(root / "material.lock"):
        if not made.direction.is_file():
            tiny.folder("Qwen2", made.model)
            rows = [
                {
                    "id": f"{subset}{i}",
                    "text": f"How do I {verb} a {thing}?",
                    "subset": subset,
                    "category": "ab"[i % 2],
                    "pair_id": None if subset == "BENIGN" else f"pair{i}",
                }
                for subset, verb in (("HARMFUL", "rob"), ("EDGE", "dig"), ("BENIGN", "see"))
                for i, thing in enumerate(THINGS)
            ]
            made.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
            width = tiny.SMALL["hidden_size"]
            direction = torch.nn.functional.normalize(torch.arange(1.0, width + 1), dim=0)
            torch.save(direction, made.direction)
    return made


def arguments(made: Material, name: str) -> list[str]:
    """The command line of a small run; a flag given twice has its later value."""
    model = f"--model {made.model} --device cpu"
    study = f"{model} --prompts {made.prompts} --refusal-tokens I"
    words = TYPED[name].format(
        model=model, study=study, prompts=made.prompts, direction=made.direction
    )
    flags: dict[str, str] = {}
    positional, rest = [], words.replace("=", " ").split()
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            flags[word] = rest.pop(0)
        else:
            positional.append(word)
    return [*positional, *(f"{flag}={value}" for flag, value in flags.items())]


def small_run(made: Material, name: str) -> SmallRun:
    """One finished small run, made by the first process that asks for it."""
    folder = made.root / name
    record = folder / "small_run.json"
    with FileLock(made.root / f"{name}.lock"):
        if not record.is_file():
            folder.mkdir()
            record.write_text(json.dumps(asdict(_made(folder, name, arguments(made, name)))))
    found = json.loads(record.read_text())
    return SmallRun(**found | {"dry_written": tuple(found["dry_written"])})


def _made(folder: Path, name: str, typed: list[str]) -> SmallRun:
    main = load(name).main
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        for module in (base, continuation):
            patch.setattr(module, "load_model", _load)
        # 1. the dry run, for which any time will do
        patch.setattr(forecast, "ENOUGH", 0.0)
        patch.setattr(forecast, "REPEATS", 1)
        dry = _printed(main, [*typed, "--dry-run"])
        written = tuple(str(path) for path in Path().rglob("*"))
        # 2. the run, from a plan that was sent
        patch.setattr(job, "compute", _compute_as_sent)
        printed = _printed(main, [*typed, "--out=run"])
    close_log()
    (run,) = (path.parent for path in (folder / "run").rglob("scores.csv"))
    return SmallRun(str(run), printed, dry, written)


def _printed(main: object, typed: Sequence[str]) -> str:
    with redirect_stdout(io.StringIO()) as out:
        cli.run(main, list(typed))
    return out.getvalue()


def _compute_as_sent(
    model: TransformerBridge, plan: Plan, tasks: Sequence[Task], machines: Machines
) -> Iterator[pd.DataFrame]:
    """The rows of every task by a copy of the plan that went through pickle. The first task's are
    those of the plan itself, and no weight of the model is sent."""
    pickle = pytest.importorskip(
        "ray.cloudpickle", reason="Ray is not installed: pip install 'refusal-dial[ray]'"
    )
    sent = pickle.dumps((plan, tasks))
    weights = model.original_model.get_input_embeddings().weight
    assert weights[100].detach().numpy().tobytes() not in sent
    there, same_tasks = pickle.loads(sent)
    assert same_tasks == tasks
    for number, task in enumerate(tasks):
        frame = there.compute(model, task)
        assert len(frame) == task.rows
        if number == 0:
            pd.testing.assert_frame_equal(frame, plan.compute(model, task))
        yield frame
