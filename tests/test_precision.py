"""How far half precision is from float32 is measured, and stands in a run's summary and page."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import script_case
import tiny

from refusal_dial.cli.flags import HoldoutFlags
from refusal_dial.model import precision
from refusal_dial.model.activations import collect
from refusal_dial.model.loading import LARGE, bfloat16_speed, load_model, speed_advice
from refusal_dial.model.precision import rounding_of
from refusal_dial.model.tokens import tokenize
from refusal_dial.report.page import report_page
from refusal_dial.report.reading import read_run
from refusal_dial.scoring.logits import LogitDiff

SCORER = LogitDiff((5,), (9,))


def test_it_is_the_difference_to_the_same_weights_in_float32(qwen_folder):
    half = load_model(str(qwen_folder), "cpu", "bfloat16")
    wide = load_model(str(qwen_folder), "cpu", "float32")
    texts = tiny.sentences(12)
    tokens = tokenize(half, texts)
    scores, exact = (SCORER(collect(one, tokens, ())[1]).numpy() for one in (half, wide))
    found = rounding_of(half, tokens, SCORER, scores)
    assert found is not None
    rows = np.linspace(0, 11, precision.COMPARED).astype(int)
    off = scores[rows] - exact[rows]
    assert found.n == precision.COMPARED
    assert found.rms == pytest.approx(np.sqrt((off**2).mean()), rel=1e-3)
    assert found.largest == pytest.approx(np.abs(off).max(), rel=1e-3)
    assert 0 < found.rms <= found.largest < 1
    assert found.about.startswith("scores in bfloat16 differ from float32 by 0.")
    assert rounding_of(wide, tokens, SCORER, exact) is None


def test_where_it_cannot_be_measured_the_log_says_why(qwen_folder, monkeypatch, caplog, tmp_path):
    half = load_model(str(qwen_folder), "cpu", "bfloat16")
    tokens = tokenize(half, tiny.sentences(2))
    with caplog.at_level("INFO", "refusal_dial"):
        half.cfg.model_name = str(tmp_path / "gone")
        assert rounding_of(half, tokens, SCORER, np.zeros(2)) is None
        monkeypatch.setattr(precision, "free_memory", lambda: 1000)
        assert rounding_of(half, tokens, SCORER, np.zeros(2)) is None
    assert "scores were not compared with float32: " in caplog.text
    assert "not compared with float32: its weights take 0.0 GB, and 0.0 are free" in caplog.text


def test_a_run_in_half_precision_states_it(qwen_folder, tmp_path, capsys):
    script = script_case.load("steering_holdout_control")
    said = {}
    for dtype in ("float32", "bfloat16"):
        flags = HoldoutFlags(
            model=str(qwen_folder),
            device="cpu",
            dtype=dtype,
            layer=(1,),
            alphas=(0.0, 0.5),
            n_random=2,
            refusal_tokens="5,9",
            out=str(tmp_path / dtype),
        )
        script.main(flags)
        capsys.readouterr()
        verdict = json.loads((tmp_path / dtype / "summary.json").read_text())
        said[dtype] = verdict.get("rounding"), report_page([read_run(tmp_path / dtype)])
    (none, plain), (found, page) = said["float32"], said["bfloat16"]
    assert none is None
    assert "differ from float32" not in plain
    assert found["dtype"] == "bfloat16"
    assert 0 < found["rms"] <= found["largest"] < 1
    assert "scores in bfloat16 differ from float32 by 0." in page
    log = (tmp_path / "bfloat16" / "log.txt").read_text()
    assert "scores in bfloat16 differ from float32 by 0." in log


def test_advice_to_take_bfloat16_is_for_large_models_that_it_makes_faster():
    speed = bfloat16_speed()
    assert math.isfinite(speed)
    assert speed > 0
    assert speed_advice(1.0, int(2 * LARGE)) == speed_advice(9.0, int(LARGE / 2)) == ""
    assert "this CPU multiplies bfloat16 3.2 times as fast" in speed_advice(3.2, int(2 * LARGE))
