"""Who writes a direction: the sum is exact, planted writers are found, and permuted labels find
nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import planted
import pytest
import torch
from architectures import CONFIGS, MIXTURES, bridge, prompts
from script_case import load
from small_runs import small_run

from refusal_dial.cli.flags import DecompositionFlags, PlotFlags
from refusal_dial.common import DialError, hook_name
from refusal_dial.directions.learning import Provenance, from_vector
from refusal_dial.model.activations import collect_positions
from refusal_dial.model.tokens import last_logits
from refusal_dial.report.decomposition import decomposition_figure, print_decomposition
from refusal_dial.report.page import verdict_lines
from refusal_dial.report.reading import read_run
from refusal_dial.run.folder import read_table, read_verdict
from refusal_dial.run.plan import Budget
from refusal_dial.stats.p_values import sign_flip_max_p
from refusal_dial.studies.base import load_study
from refusal_dial.studies.decomposition import (
    DecompositionPlan,
    Unit,
    completeness,
    conduct_decomposition,
    keep_only,
    readers_of,
    source_writes,
    study_decomposition,
    unit_activations,
    writes_of,
)

TOKENS = prompts((6, 4, 7), seed=2)
UNIT = torch.nn.functional.normalize(
    torch.randn(32, generator=torch.Generator().manual_seed(1)), dim=0
)
NORMED = ("Gemma2", "Gemma3", "Olmo2")
PLAIN = sorted(set(CONFIGS) - set(NORMED) - set(MIXTURES))


def taken_apart(architecture, layer):
    model = bridge(architecture)
    readers = readers_of(model, UNIT, layer)
    held = unit_activations(model, TOKENS, UNIT, layer, batch_size=2)
    return model, readers, held, writes_of(held, readers)


# --- the sum


@pytest.mark.parametrize("architecture", PLAIN)
def test_the_parts_add_up_to_what_stands_there(architecture):
    for layer in range(1, len(bridge(architecture).blocks)):
        _, _, _, writes = taken_apart(architecture, layer)
        assert completeness(writes) < 1e-4
        assert float(writes.total.abs().max()) > 1e-3  # and that is something


@pytest.mark.parametrize("architecture", NORMED)
def test_a_norm_behind_the_writers_is_refused_with_its_name(architecture):
    with pytest.raises(
        DialError, match=r"a norm behind what its blocks compute \(ln1_post, ln2_post\)"
    ):
        readers_of(bridge(architecture), UNIT, 1)


@pytest.mark.parametrize("architecture", MIXTURES)
def test_a_mixture_of_experts_whose_neurons_are_no_site_is_refused(architecture):
    with pytest.raises(DialError, match=f"{architecture}ForCausalLM has no site 'mlp_post'"):
        readers_of(bridge(architecture), UNIT, 1)


@pytest.mark.parametrize(
    ("layer", "words"),
    [(0, "layer 0 has no writers below it"), (9, "this model has layers 0 to 2")],
)
def test_a_layer_without_writers_and_one_that_is_not_there_are_refused(layer, words):
    with pytest.raises(DialError, match=words):
        readers_of(bridge("Qwen2"), UNIT, layer)


@pytest.mark.parametrize("architecture", ["Qwen2", "Mistral", "Phi3", "GPT2", "GPTNeoX"])
def test_a_head_writes_what_attention_adds_with_it_and_does_not_without_it(architecture):
    """Brute force, for grouped-query attention too: take one head's z away and see what is gone."""
    model, _, _, writes = taken_apart(architecture, 2)
    for head in range(4):
        seen = []

        def gone(z, hook, head=head):
            z = z.clone()
            z[:, -1, head] = 0
            return z

        for cell in ([], [(hook_name("z", 0), gone)]):
            keep = lambda value, hook, seen=seen: seen.append(value[:, -1].double() @ UNIT.double())  # noqa: E731
            last_logits(model, TOKENS, [*cell, (hook_name("attn_out", 0), keep)])
        torch.testing.assert_close(
            seen[0] - seen[1], writes.heads[:, 0, head], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("architecture", PLAIN)
def test_what_a_head_reads_at_every_position_adds_up_to_what_it_writes(architecture):
    below = len(bridge(architecture).blocks) - 1
    model, readers, _, writes = taken_apart(architecture, below)
    heads = [Unit("head", layer, number) for layer in range(below) for number in range(4)]
    for head, parts in zip(heads, source_writes(model, TOKENS, heads, readers), strict=True):
        torch.testing.assert_close(parts.sum(1), writes.of(head), atol=1e-5, rtol=1e-4)
        assert not bool(parts[TOKENS.mask == 0].any())  # padding is not read


def test_keeping_every_unit_changes_nothing_and_keeping_none_gives_the_other_prompt():
    model, _, held, _ = taken_apart("Qwen2", 2)
    every = [Unit("head", n, h) for n in range(2) for h in range(4)]
    every += [Unit("neuron", n, i) for n in range(2) for i in range(48)]
    other = prompts((6, 4, 7), seed=9)
    far = unit_activations(model, other, UNIT, 2, batch_size=3)
    plain = last_logits(model, TOKENS)
    for units, same in ((every, True), ([], False)):
        logits = last_logits(model, TOKENS, keep_only(units, far.z, far.post))
        assert torch.equal(logits, plain) == same
    replaced = keep_only([], held.z, held.post)
    torch.testing.assert_close(last_logits(model, TOKENS, replaced), plain, atol=1e-5, rtol=1e-5)


# --- p: uniform under permuted labels, with power for what is planted


def test_permuted_labels_find_nothing_and_a_planted_unit_is_found():
    rng = np.random.default_rng(3)
    least, found = [], 0
    for seed in range(200):
        shared = rng.normal(size=12)
        rows = rng.normal(size=(40, 12)) + shared * rng.normal(size=(40, 1))
        least.append(sign_flip_max_p(rows, seed).min())
        rows[5] += 2.5
        found += sign_flip_max_p(rows, seed)[5] <= 0.05
    share = np.mean(np.array(least) <= 0.05)
    assert 0.01 <= share <= 0.095  # 0.05 ± 3 standard errors
    assert found >= 150


def test_p_of_a_single_row_is_that_of_its_own_sign_flips():
    d = np.array([1.0, 2.0, 0.5, 3.0, -0.2])
    exact = np.mean(
        [
            abs(np.dot(d, s)) >= d.sum() - 1e-9
            for s in np.ndindex(*[2] * 5)
            for s in [np.array(s) * 2 - 1]
        ]
    )
    assert sign_flip_max_p(d)[0] == pytest.approx(exact)
    assert sign_flip_max_p(np.zeros((1, 5)))[0] == 1
    with pytest.raises(DialError, match="differences of 2 pairs, of which 1 are NaN"):
        sign_flip_max_p([[1.0, np.nan]])


# --- planted writers


def opened(tmp_path, writer, layer, harmful=("zzzz",), **more):
    folder, r = planted.model_folder(tmp_path / writer, writer)
    file = planted.prompts_file(tmp_path / "prompts.jsonl", n=14, harmful=harmful)
    flags = DecompositionFlags(
        **{
            **{"model": str(folder), "prompts": str(file), "refusal_tokens": "I", "device": "cpu"},
            **{"dtype": "float32", "gap": 0.0, "n_pairs": 14, "n_top": 4, "n_random": 3},
            **{"n_neurons": 6, "layer": layer, "gate_pairs": 14, "out": str(tmp_path / "run")},
            **more,
        }
    )
    study = load_study(flags, (layer,), "resid_pre")
    return study, flags, from_vector(r, Provenance(layer=layer, site="resid_pre", pos=-1))


def row_of(summary, kind, layer, unit):
    part = summary[
        (summary["kind"] == kind) & (summary["layer"] == layer) & (summary["unit"] == unit)
    ]
    return part.iloc[0]


def shares(record, name, **wanted):
    return [
        one["share"]
        for one in record[name]
        if all(one[key] == value for key, value in wanted.items())
    ]


def test_the_planted_head_writes_it_reads_the_phrase_and_is_enough(tmp_path):
    study, flags, r = opened(tmp_path, "head", planted.LAYER + 2)
    run, summary = conduct_decomposition(study, flags, r)
    record = read_verdict(run.folder)
    best = summary.iloc[0]
    assert (best["kind"], best["layer"], best["unit"]) == ("head", planted.LAYER, planted.HEAD)
    assert best["share"] == pytest.approx(1, abs=0.05)
    assert best["p_shuffled"] < 0.01
    assert best["top_source_role"] == "phrase"
    assert best["repair"] == pytest.approx(0, abs=0.05)
    assert best["d_score_denoise"] > 1
    assert best["d_score_noise"] < -1
    assert abs(best["same_class"]) < 0.2 * best["d_score_denoise"]
    assert record["completeness"] < 1e-4
    for name in ("together", "enough"):
        (top,) = shares(
            record,
            name,
            measure="score",
            set="top",
            **({"way": "denoise"} if name == "together" else {}),
        )
        others = shares(record, name, measure="score", set="random_set")
        assert top == pytest.approx(1, abs=0.1)
        assert max(map(abs, others)) < 0.1
    others = summary[summary["kind"].isin(("head", "neuron"))].iloc[1:]
    assert others["share"].abs().max() < 0.05


def test_a_planted_neuron_is_the_writer_and_the_head_before_it_a_gate(tmp_path):
    """The head writes a marker and nothing of the direction: it steers the neuron that does."""
    study, flags, r = opened(tmp_path, "neuron", planted.LAYER + 2)
    run, summary = conduct_decomposition(study, flags, r)
    best = summary.iloc[0]
    assert (best["kind"], best["layer"], best["unit"]) == (
        "neuron",
        planted.LAYER + 1,
        planted.NEURON,
    )
    assert best["share"] == pytest.approx(1, abs=0.05)
    gate = row_of(summary, "head", planted.LAYER, planted.HEAD)
    assert abs(gate["share"]) < 0.05
    (first, *others) = read_verdict(run.folder)["gates"]
    assert first["head"] == f"{planted.LAYER}.{planted.HEAD}"
    assert first["later"] == f"neuron {planted.LAYER + 1}.{planted.NEURON}"
    assert first["p"] < 0.01
    assert first["change"] == pytest.approx(-best["d_projection"], rel=0.1)
    assert all(abs(one["change"]) < 0.05 * abs(first["change"]) for one in others)


@pytest.mark.parametrize("sign", [-1, 1])
def test_what_a_later_neuron_takes_back_or_adds_shows_as_repair_or_amplification(tmp_path, sign):
    study, flags, r = opened(tmp_path, "head", planted.LAYER + 2, n_top=2)
    head = Unit("head", planted.LAYER, planted.HEAD)
    # a neuron of the next layer reads r, and writes as much of it as the head did, or takes it back
    mlp = study.model.blocks[planted.LAYER + 1].mlp.original_component
    with torch.no_grad():
        for part in (mlp.gate_proj, mlp.up_proj):
            part.weight[planted.NEURON] = 3 * r.unit
        mlp.down_proj.weight[:, planted.NEURON] = 0
    before = study_decomposition(study, flags, r)
    neuron = Unit("neuron", planted.LAYER + 1, planted.NEURON)
    given = before.held[0].of(neuron, range(len(before.pairs))).mean()
    with torch.no_grad():
        written = before.writes[0].of(head).mean()
        mlp.down_proj.weight[:, planted.NEURON] = sign * written / given * r.unit
    _, summary = conduct_decomposition(study, flags, r)
    found = row_of(summary, "head", planted.LAYER, planted.HEAD)
    assert found["repair"] == pytest.approx(-sign, abs=0.1)
    later = row_of(summary, "neuron", planted.LAYER + 1, planted.NEURON)
    assert later["write_refused"] == pytest.approx(sign * found["write_refused"], rel=0.1)


def test_with_labels_drawn_at_random_the_planted_head_is_nothing_special(tmp_path):
    study, flags, r = opened(tmp_path, "head", planted.LAYER + 2)
    here = study_decomposition(study, flags, r)
    assert here.p_values[Unit("head", planted.LAYER, planted.HEAD)] < 0.01
    one, other = here.writes
    rows = torch.cat(
        [(one.heads - other.heads).flatten(1), (one.neurons - other.neurons).flatten(1)], 1
    )
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (100, len(rows)))
    least = [sign_flip_max_p(rows.T.numpy() * flip, seed).min() for seed, flip in enumerate(signs)]
    assert np.mean(np.array(least) <= 0.05) <= 0.12  # 0.05 and 3 standard errors


def by_both_engines(study, here):
    """The rows by the engine and by plain passes, each task as many as the plan says."""
    ways = []
    for engine in ("auto", "plain"):
        plan = DecompositionPlan(here, Budget(5, engine), 0, n_random=1, gate_pairs=4)
        frames = [plan.compute(study.model, task) for task in plan.tasks]
        assert [len(frame) for frame in frames] == [task.rows for task in plan.tasks]
        ways.append(pd.concat(frames))
    return ways


def test_rows_are_those_that_the_plan_says_and_the_engine_agrees_with_plain_passes(tmp_path):
    few = {"n_top": 2, "n_neurons": 3, "n_pairs": 6, "gate_pairs": 6}
    study, flags, r = opened(tmp_path, "head", planted.LAYER + 1, **few)
    here = study_decomposition(study, flags, r)
    ways = by_both_engines(study, here)
    assert list(ways[0]["measure"]) == list(ways[1]["measure"])
    np.testing.assert_allclose(ways[0]["score"], ways[1]["score"], atol=1e-4)


# --- what cannot be used, and what is shown


def test_a_direction_of_another_site_and_a_position_outside_are_refused(tmp_path):
    study, flags, r = opened(tmp_path, "head", 3)
    other = from_vector(torch.ones(planted.D), Provenance(layer=3, site="attn_out", pos=-1))
    with pytest.raises(DialError, match="one of attn_out: expected one of resid_pre"):
        study_decomposition(study, flags, other)
    with pytest.raises(DialError, match=r"position -99 is not in every prompt: expected -1 to -\d"):
        study_decomposition(study, replace(flags, pos=-99), r)


def test_at_an_earlier_position_the_sum_is_that_of_the_prompt_cut_there(tmp_path):
    """No later token reaches a position: there the whole is that of a prompt that ends at it."""
    study, flags, r = opened(tmp_path, "head", planted.LAYER + 2, n_top=3)
    here = study_decomposition(study, replace(flags, pos=-2), r)
    assert here.role == "end-2"
    tokens = here.pairs.clean
    whole, _ = collect_positions(study.model, tokens, [here.layer], [-2])
    along = whole[0, 0].double() @ r.unit.double()
    torch.testing.assert_close(here.writes[0].total, along, atol=1e-4, rtol=1e-4)
    assert completeness(*here.writes) < 1e-4
    # Before the phrase the two prompts of a pair are the same, and nothing differs.
    first = -min(min(pair.lengths) for pair in here.pairs.items)
    before = study_decomposition(study, replace(flags, pos=first), r)
    assert float((before.writes[0].total - before.writes[1].total).abs().max()) < 1e-4
    gap = float((here.writes[0].total - here.writes[1].total).mean())
    assert gap > 1
    # A position that a direction was read at is the one that is taken apart.
    there = from_vector(r.unit, Provenance(layer=planted.LAYER + 2, site="resid_pre", pos=-2))
    assert study_decomposition(study, flags, there).pos == -2


def test_edits_at_an_earlier_position_are_plain_passes_of_the_whole_prompt(tmp_path):
    few = {"n_top": 2, "n_neurons": 3, "n_pairs": 6, "gate_pairs": 6, "pos": -3}
    study, flags, r = opened(tmp_path, "head", planted.LAYER + 1, **few)
    here = study_decomposition(study, flags, r)
    ways = by_both_engines(study, here)
    np.testing.assert_allclose(ways[0]["score"], ways[1]["score"], atol=1e-4)
    rows = ways[0]
    assert set(rows["measure"]) >= {"score", "projection", "attribution", "kept_score", "source"}
    # What a head reads up to the position adds up to what it writes there.
    sources = rows[rows["measure"] == "source"]
    heads = sources.groupby(["way", "layer", "unit", "prompt_id"])["score"].sum()
    written = rows[(rows["measure"] == "write") & (rows["kind"] == "head")]
    written = written.set_index(["way", "layer", "unit", "prompt_id"])["score"]
    np.testing.assert_allclose(heads, written[heads.index], atol=1e-4)


def test_the_small_run_has_its_figure_its_sentences_and_its_report(
    small_material, tmp_path, capsys
):
    folder = tmp_path / "run"
    shutil.copytree(small_run(small_material, "decompose_direction").folder, folder)
    summary, record = read_table(folder, "summary"), read_verdict(folder)
    print_decomposition(summary, record)
    printed = capsys.readouterr().out
    assert "who writes it, 4 pairs" in printed
    assert "the parts add up to r·h within" in printed
    figure = decomposition_figure(summary, record, "title")
    assert len(figure.data) == 3
    assert figure.layout.yaxis.dtick == 1  # heads have whole numbers
    reading = read_run(folder)
    assert reading.kind == "decomposition"
    assert [line.about for line in verdict_lines(reading)][1] == "which of them matter"
    load("plot_decomposition").main(PlotFlags(run=str(folder)))
    assert (folder / "decomposition.html").stat().st_size > 1000
