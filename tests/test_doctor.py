"""The doctor: what it says of a machine that is ready, and of each thing that is not."""

from __future__ import annotations

import json
import logging
import shutil
from itertools import islice

import pytest
import tiny
import torch
from script_case import load

from refusal_dial.cli import command_line as cli
from refusal_dial.studies import doctor
from refusal_dial.studies.doctor import examine


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "PROMPTS_TRIED", 8)


def found(name: str, **more: str) -> dict[str, doctor.Finding]:
    return {one.check: one for one in examine(name, device="cpu", **more)}


def test_the_embedded_model_can_start_and_the_exit_code_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("refusal_dial"), "setLevel", lambda _: None)
    cli.run(load("doctor").main, ["--device", "cpu"])  # raises where the code is not 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "the run can start"
    for check in ("python", "packages", "device", "disk", "weights", "memory", "model"):
        assert any(line[6:].startswith(f"{check}:") for line in lines), check
    assert any("4 tokens plain and steered" in line for line in lines)


def test_a_model_that_is_not_there_cannot_start(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run(load("doctor").main, ["--model", str(tmp_path / "none"), "--device", "cpu"])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "fail  weights: no folder" in printed
    assert "-> give a folder, or use --model embedded" in printed
    assert "the run cannot start: 1 to mend" in printed


def test_a_model_without_a_template_may_run_on_plain_text(tmp_path):
    one = found(str(tiny.folder("Phi3", tmp_path / "phi", template=None)))
    assert one["chat template"].verdict == "warn"
    assert "--plain" in one["chat template"].remedy
    assert one["generation"].verdict == "ok"


def test_weights_with_nan_are_found_by_the_forward_pass(tmp_path):
    folder = tiny.folder("Qwen2", tmp_path / "qwen")
    model = tiny.hf_model("Qwen2")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(folder)
    one = found(str(folder))
    assert one["forward pass"].verdict == "fail"
    assert "NaN or infinite logits: the weights hold NaN" in one["forward pass"].found
    assert "model.norm.weight)" in one["forward pass"].found
    assert "no --dtype mends them" in one["forward pass"].remedy
    assert "generation" not in one


def test_a_model_larger_than_what_is_free_fails_before_it_is_loaded(qwen_folder, monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda: 1000)
    one = found(str(qwen_folder))
    assert one["memory"].verdict == "fail"
    assert "--dtype bfloat16 halves it" in one["memory"].remedy
    assert "model" not in one
    smaller = found(str(qwen_folder), dtype="bfloat16")["memory"]
    assert "halves" not in smaller.remedy


def test_a_missing_or_old_package_names_its_remedy(monkeypatch):
    least = {"torch": (99, 0), "no-such-package": (1, 0)}
    monkeypatch.setattr(doctor, "LEAST_VERSIONS", least)
    findings = [one for one in islice(examine("embedded"), 3) if one.check == "packages"]
    assert [one.verdict for one in findings] == ["fail", "fail"]
    assert findings[0].remedy == "pip install 'torch>=99.0'"
    assert "is not installed" in findings[1].found


@pytest.mark.parametrize(
    ("flags", "message"),
    [({"device": "gpu"}, "unknown device 'gpu'"), ({"dtype": "int4"}, "dtype")],
)
def test_a_device_or_format_that_is_not_there(flags, message):
    last = list(examine("embedded", **({"device": "cpu"} | flags)))[-1]
    assert (last.check, last.verdict) == ("device", "fail")
    assert message in last.found


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "DISK_GB", 1e9)
    one = next(f for f in examine("embedded", out=tmp_path / "new") if f.check == "disk")
    assert one.verdict == "fail"
    assert "give another --out" in one.remedy


def test_half_a_download_cannot_start(qwen_folder, tmp_path):
    folder = shutil.copytree(qwen_folder, tmp_path / "half")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "second.st"}}))
    one = found(str(folder))
    assert one["weights"].verdict == "fail"
    assert "second.st" in one["weights"].found
    assert "finish the download" in one["weights"].remedy
    assert "memory" not in one


def test_quantised_weights_are_counted_by_their_bits(qwen_folder):
    whole, few = (found(str(qwen_folder), dtype=d)["memory"].found for d in ("float32", "4bit"))
    assert "at 4 bytes each" in whole
    assert "at 0.5 bytes each" in few


def test_memory_is_judged_by_the_configuration_where_it_wants_more(qwen_folder, tmp_path):
    folder = shutil.copytree(qwen_folder, tmp_path / "wide")
    about = json.loads((folder / "config.json").read_text())
    wide = {"hidden_size": 10**4, "intermediate_size": 10**7}
    (folder / "config.json").write_text(json.dumps(about | wide))
    (folder / "model.safetensors").unlink()
    one = found(str(folder))
    assert one["memory"].verdict == "fail"
    assert "million parameters want" in one["memory"].found
    assert "model" not in one


def test_logits_that_only_half_precision_spoils_are_known_from_broken_weights(tmp_path):
    folder = tiny.folder("Qwen2", tmp_path / "qwen")
    model = tiny.hf_model("Qwen2")
    with torch.no_grad():
        model.lm_head.weight.fill_(1e6)
    model.save_pretrained(folder)
    half = found(str(folder), dtype="float16")["forward pass"]
    assert (half.verdict, half.remedy) == ("fail", "use --dtype float32")
    assert found(str(folder))["forward pass"].verdict == "ok"
    with torch.no_grad():
        model.lm_head.weight.fill_(3e38)
    model.save_pretrained(folder)
    full = found(str(folder))["forward pass"]
    assert "in float32, from weights without NaN" in full.found
    assert "--dtype" not in full.remedy


def test_a_model_that_tells_no_refusal_token_fails_as_a_run_would(qwen_folder):
    """Random weights refuse nothing: `--refusal-tokens auto` is an error, here and in a run."""
    one = found(str(qwen_folder))["refusal tokens"]
    assert one.verdict == "fail"
    assert "no refusal tokens could be chosen: of 24 replies" in one.found
    assert "--refusal-tokens" in one.remedy
    assert found("embedded")["refusal tokens"].found.startswith("calibrated: ")
