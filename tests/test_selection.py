"""Selection end to end: candidates, what they do, the choice, the files it leaves."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from refusal_dial import directions
from refusal_dial.cli.flags import SelectionFlags
from refusal_dial.common import DialError
from refusal_dial.data.prompts import Prompt, of_subset
from refusal_dial.hooks import ablate, steer
from refusal_dial.model.activations import collect_positions
from refusal_dial.model.tokens import last_logits, tokenize
from refusal_dial.report.selection import print_report, print_selection
from refusal_dial.run.folder import read_table
from refusal_dial.studies import selection as layout
from refusal_dial.studies.base import load_study
from refusal_dial.studies.selection import (
    NO_DIFFERENCE,
    conduct_selection,
    kl_from,
    low_layers,
    split,
    template_positions,
)

FLAGS = SelectionFlags(
    device="cpu",
    refusal_tokens="I",
    positions=(-2, -1),
    n_train=8,
    n_val=3,
    n_test=3,
    max_kl=1e9,
    min_induce=-1e9,
)
N_LAYERS = 3  # of the tiny model, of which the last is discarded: int(0.8 * 3) = 2


@pytest.fixture(scope="module")
def study(qwen_folder, tmp_path_factory):
    """A tiny random model: it refuses nothing, but what is done to it can be checked."""
    path = tmp_path_factory.mktemp("prompts") / "some.jsonl"
    rows = [
        {"text": f"{subset.lower()} {i} {'x' * (3 * i % 7)}", "subset": subset}
        for subset in ("HARMFUL", "BENIGN")
        for i in range(14)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_study(replace(FLAGS, model=str(qwen_folder), prompts=str(path)))


@pytest.fixture(scope="module")
def selected(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("selection") / "run"
    flags = replace(FLAGS, out=str(out), layout="refusal_direction")
    return conduct_selection("select_direction", study, flags)


# --- parity


def test_the_published_mean_differences_give_the_published_direction(shared):
    folder = shared / "data/refusal_direction/qwen-1_8b-chat"
    candidates, raw = layout.read_published(folder)
    assert raw.shape == (5, 24, 2048)
    found = layout.candidate(raw, -2, 15)
    published = layout.read_tensor(folder / "direction.pt")
    assert torch.equal(raw[-2, 15], published)
    torch.testing.assert_close(found.unit.double() * found.norm, published, atol=1e-5, rtol=1e-6)
    assert len(candidates) == 120
    found, none = layout.read_published(shared / "data/refusal_direction/meta-llama-3-8b-instruct")
    assert (len(found), none) == (160, None)


def test_kl_is_the_published_one_with_its_small_constant():
    base, other = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    p, q = base.double().softmax(-1), other.double().softmax(-1)
    want = (p * ((p + 1e-6).log() - (q + 1e-6).log())).sum(-1)
    torch.testing.assert_close(kl_from(other, base), want)
    assert kl_from(base, base).abs().max() == 0


# --- candidates


def test_the_template_is_what_follows_every_prompt(embedded, qwen):
    positions = template_positions(embedded)
    assert positions == tuple(range(-len(positions), 0))
    rows = tokenize(embedded, ["One thing", "Another!"]).ids
    n = len(positions)
    assert torch.equal(rows[0, -n:], rows[1, -n:])
    assert embedded.tokenizer.decode(rows[0, -n:]) in tokenize_text(embedded)
    assert len(template_positions(qwen)) == len(
        ["<|im_end|>", "\n", "<|im_start|>", *"assistant", "\n"]
    )
    assert template_positions(qwen, chat=False) == (-1,)


def tokenize_text(model):
    return model.tokenizer.decode(tokenize(model, ["x"]).ids[0])


def test_a_split_keeps_its_parts_apart_and_shrinks_for_few_prompts():
    prompts = [Prompt(str(i), "t", "HARMFUL", "ab"[i % 2]) for i in range(40)]
    parts = split(prompts, 20, 6, 4, seed=1)
    assert [len(part) for part in (parts.train, parts.val, parts.test)] == [20, 6, 4]
    ids = [p.id for part in (parts.train, parts.val, parts.test) for p in part]
    assert len(set(ids)) == 30
    assert abs(sum(p.category == "a" for p in parts.train) - 10) <= 1
    assert split(prompts, 20, 6, 4, seed=1) == parts != split(prompts, 20, 6, 4, seed=2)
    few = split(prompts[:12], 128, 32, 32, seed=0)
    assert [len(part) for part in (few.train, few.val, few.test)] == [6, 3, 3]
    with pytest.raises(DialError, match="7 prompts a group are too few"):
        split(prompts[:7], 2, 2, 2, seed=0)


# --- what is measured


def test_every_measure_is_what_plain_hooks_give(study, selected):
    rows = read_table(selected.run.folder, "scores")
    direction = selected.direction
    pos, layer = direction.provenance.pos, direction.provenance.layer
    n_layers = int(study.model.cfg.n_layers)
    sites = ("resid_pre", "attn_out", "mlp_out")
    everywhere = [ablate(direction, layer=n, site=s) for n in range(n_layers) for s in sites]
    hooks = {
        "bypass": everywhere,
        "kl": everywhere,
        "induce": [steer(direction, direction.norm, layer=layer)],
    }
    for measure, some in hooks.items():
        part = rows[(rows["measure"] == measure) & (rows["layer"] == layer) & (rows["pos"] == pos)]
        assert len(part) == 3
        place = {p.id: i for i, p in enumerate(study.prompts)}
        tokens = study.tokens.chosen([place[i] for i in part["prompt_id"]])
        logits = last_logits(study.model, tokens, some)
        want = study.scorer(logits) if measure != "kl" else None
        if want is None:
            want = kl_from(logits, last_logits(study.model, tokens))
        np.testing.assert_allclose(part["score"], want.numpy(), atol=1e-3)
        subset = "HARMFUL" if measure == "bypass" else "BENIGN"
        assert {study.prompts[place[i]].subset for i in part["prompt_id"]} == {subset}
        mean = selected.ranked.iloc[0][measure]
        assert mean == pytest.approx(part["score"].mean(), abs=1e-9)


def test_discarded_layers_are_not_measured_and_say_so(study, selected):
    rows = read_table(selected.run.folder, "scores")
    assert rows["layer"].max() == 1
    gone = selected.ranked[selected.ranked["layer"] >= 2]
    assert (gone["dropped"] == "layer from 2 on").all()
    assert len(gone) == 2
    assert len(selected.ranked) == 2 * N_LAYERS


def test_the_report_is_on_prompts_that_nothing_was_learned_or_chosen_from(study, selected):
    rows = read_table(selected.run.folder, "scores")
    seen = {*rows["prompt_id"], *selected.direction.provenance.prompt_ids}
    assert len(seen) == 8 + 8 + 3 + 3
    test = selected.report["test"]
    for measure, row in test.items():
        assert row["n"] == 3
        assert row["change"] == pytest.approx(row["changed"] - row["base"], abs=1e-9)
        low, high = row["interval"]
        assert low <= row["change"] <= high, measure
    rest = [i for i, p in enumerate(study.prompts) if p.id not in seen and p.subset == "HARMFUL"]
    assert test["bypass"]["base"] == pytest.approx(study.scores[rest].mean())


def test_where_the_groups_do_not_differ_there_is_no_candidate(study, tmp_path):
    flags = replace(FLAGS, out=str(tmp_path / "run"), rule="effect")
    ranked = conduct_selection("select_direction", study, flags).ranked
    first = ranked[ranked["layer"] == 0].iloc[0]
    assert first["dropped"] == NO_DIFFERENCE  # the template's token itself, before any layer
    assert (ranked["layer"] == 0).sum() == 2
    base = read_table(tmp_path / "run", "scores").query("measure == 'base'")["score"].mean()
    assert first["bypass"] == pytest.approx(base)
    assert first["kl"] == 0


def test_cosmic_measures_cosines_of_means_where_the_groups_are_least_alike(study, tmp_path):
    flags = replace(FLAGS, rule="cosmic", out=str(tmp_path / "run"))
    found = conduct_selection("select_direction", study, flags)
    layer, pos = found.direction.provenance.layer, found.direction.provenance.pos
    rows = read_table(tmp_path / "run", "scores")
    [low] = found.report["cosmic_layers"]
    place = {p.id: i for i, p in enumerate(study.prompts)}
    ids = {m: rows.query(f"measure == '{m}'")["prompt_id"].unique() for m in ("base", "kl")}
    harmful, harmless = (study.tokens.chosen([place[i] for i in ids[m]]) for m in ("base", "kl"))
    added = [steer(found.direction, found.direction.norm, layer=layer)]

    def mean(tokens, hooks=()):
        seen, _ = collect_positions(
            study.model, tokens, [low], (-1,), site="resid_post", hooks=hooks
        )
        return seen[0, 0].double().mean(0)

    want = torch.cosine_similarity(mean(harmless, added), mean(harmful), dim=0)
    row = found.ranked[(found.ranked["layer"] == layer) & (found.ranked["pos"] == pos)].iloc[0]
    assert row["induce"] == pytest.approx(float(want), abs=1e-5)
    assert found.ranked["induce"].dropna().between(-1, 1).all()


def test_the_lowest_tenth_of_the_layers_is_where_the_groups_are_least_alike(study):
    rows = [study.rows(of_subset(study.prompts, s)) for s in ("HARMFUL", "BENIGN")]
    groups = [study.tokens.chosen(some) for some in rows]
    [low] = low_layers(study.model, *groups, 64)
    means = [
        collect_positions(study.model, g, range(3), (-1,), site="resid_post")[0][0].mean(1)
        for g in groups
    ]
    assert low == int(torch.cosine_similarity(*means, dim=-1).argmin())


# --- files


def test_the_layout_is_read_back_as_what_was_measured(selected):
    folder = selected.run.folder
    candidates, raw = layout.read_published(folder)
    assert raw.shape == (2, N_LAYERS, 32)
    about = json.loads((folder / "direction_metadata.json").read_text())
    found = layout.candidate(raw, about["pos"], about["layer"])
    torch.testing.assert_close(found.unit, selected.direction.unit)
    assert found.norm == pytest.approx(selected.direction.norm, rel=1e-6)
    chosen = layout.read_tensor(folder / "direction.pt")
    assert torch.equal(chosen, raw[about["pos"], about["layer"]])
    assert chosen.dtype == torch.float64
    kept = json.loads((folder / "select_direction/direction_evaluations_filtered.json").read_text())
    assert (kept[0]["position"], kept[0]["layer"]) == (about["pos"], about["layer"])
    assert len(candidates) == 2 * N_LAYERS
    assert candidates["bypass"].isna().sum() == 2
    saved = directions.load(folder / "direction.safetensors")
    torch.testing.assert_close(saved.unit, selected.direction.unit, atol=0, rtol=0)


def test_a_finished_run_is_read(study, selected, monkeypatch):
    monkeypatch.setattr("refusal_dial.run.job.append", lambda *_: pytest.fail("computed again"))
    flags = replace(FLAGS, out=str(selected.run.folder), layout="refusal_direction")
    again = conduct_selection("select_direction", study, flags)
    assert torch.equal(again.direction.unit, selected.direction.unit)
    assert dict(again.report) == dict(selected.report)


def test_what_was_tried_kept_and_dropped_is_printed(selected, capsys):
    print_selection(selected.ranked, "refusal")
    print_report(selected.report)
    printed = capsys.readouterr().out
    assert "tried 6 candidates: positions -2, -1, layers 0 to 2; kept" in printed
    assert "dropped 2: layer from 2 on" in printed
    assert "On test prompts, which no choice was made on:" in printed


def test_the_layout_needs_all_positions_up_to_the_last(study, tmp_path):
    flags = replace(FLAGS, positions=(-3, -1), layout="refusal_direction", out=str(tmp_path))
    with pytest.raises(DialError, match=r"needs positions -n to -1, not \(-3, -1\)"):
        conduct_selection("select_direction", study, flags)


def test_only_plain_tensors_are_read(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"a": pd.DataFrame()}, path)
    with pytest.raises(DialError, match=r"is not a \.pt file of plain tensors .* ever unpickled"):
        layout.read_tensor(path)
    path.write_bytes(b"garbage")
    with pytest.raises(DialError, match=r"is not a \.pt file of plain tensors"):
        layout.read_tensor(path)
    with pytest.raises(DialError, match="no file"):
        layout.read_tensor(tmp_path / "gone.pt")
