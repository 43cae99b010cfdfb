"""Sizes grow with what they measure, and a budget divides the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import bridge
from grids import TOKENS, UNIT, logprob, mixed_grid

from refusal_dial.common import DialError
from refusal_dial.engine.recording import Sizes
from refusal_dial.engine.score import score_grid
from refusal_dial.hooks import patch


def test_sizes_grow_with_what_they_measure() -> None:
    sizes = Sizes.of(bridge("Qwen2"))
    assert sizes.trunk(20, 1) < sizes.trunk(20, 20) < sizes.trunk(40, 20)
    assert sizes.token(10) < sizes.token(1000)
    assert sizes.tokens(1, 10) == 1
    assert sizes.tokens(2**40, 10) >= 1024
    assert sizes.spare() > 0


def test_a_memory_budget_divides_plain_passes_too() -> None:
    model = bridge("Qwen2")
    per_row = torch.stack([UNIT, -UNIT, 2 * UNIT])
    grid = [[patch(per_row, layer=1, pos=torch.tensor([-1, -2, -3]))], *mixed_grid()]
    whole = score_grid(model, TOKENS, grid, logprob, engine="plain")
    tiny = score_grid(model, TOKENS, grid, logprob, engine="plain", memory_gb=1e-6)
    torch.testing.assert_close(tiny, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("memory", [0.0, -1.0, float("nan")])
def test_a_budget_is_positive(memory: float) -> None:
    with pytest.raises(DialError, match="memory must be a positive number"):
        score_grid(bridge("Qwen2"), TOKENS, [[]], logprob, memory_gb=memory)


# --- reading the prompts of a study

VOCABULARY, PROMPTS_READ = 60_000, 1000
ROW = 4 * VOCABULARY  # bytes of one prompt's logits

READING = """
import json, pathlib, re, sys
import tiny
from refusal_dial.cli.flags import StudyFlags
from refusal_dial.model.loading import load_model
from refusal_dial.scoring.logits import NotCalibratedError
from refusal_dial.studies import base

tiny.SMALL.update(vocab_size=int(sys.argv[2]), num_hidden_layers=1)
model = load_model(str(tiny.folder("Qwen2", sys.argv[1] + "/model")), device="cpu")
peaks = []
for tokens, kept, n in (
    ("I", 0, 300), ("calibrated", 0, 300), ("I", 0, int(sys.argv[3])),
    ("calibrated", 0, int(sys.argv[3])), ("I", 2**40, int(sys.argv[3])),
):
    with open(sys.argv[1] + "/prompts.jsonl", "w") as file:
        for i in range(n):
            subset = ("HARMFUL", "BENIGN")[i % 2]
            file.write(json.dumps({"text": f"text {i}", "subset": subset}) + "\\n")
    base.KEPT_LOGITS = kept
    flags = StudyFlags(prompts=file.name, device="cpu", refusal_tokens=tokens)
    try:
        base.study_of(model, flags)
    except NotCalibratedError:  # after all HARMFUL and BENIGN prompts were read
        pass
    status = pathlib.Path("/proc/self/status").read_text()  # getrusage's peak is the parent's too
    peaks.append(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024)
print(json.dumps(peaks))
"""


@pytest.mark.slow
def test_what_a_prompt_takes_does_not_grow_with_the_vocabulary(tmp_path: Path) -> None:
    """Peaks of one process: some prompts, then many, with listed and with calibrated tokens. The
    control keeps the logits of all, and the same meter sees them."""
    done = subprocess.run(
        [sys.executable, "-c", READING, str(tmp_path), str(VOCABULARY), str(PROMPTS_READ)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},  # what is freed is given back
    )
    assert done.returncode == 0, done.stderr[-2000:]
    _, some, listed, calibrated, kept = json.loads(done.stdout.splitlines()[-1])
    assert listed - some < 0.15 * ROW * PROMPTS_READ
    assert calibrated - some < 0.15 * ROW * PROMPTS_READ
    assert kept - calibrated > 0.7 * ROW * PROMPTS_READ
