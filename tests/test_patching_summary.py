"""Summaries of patching: effects over pairs, tested against the control on the same pairs."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from refusal_dial.report.patching import print_attribution_agreement, print_carriers, print_patching
from refusal_dial.stats.intervals import mean_interval
from refusal_dial.stats.p_values import sign_flip_p
from refusal_dial.stats.summary import SUMMARY_COLUMNS as CONTRACT
from refusal_dial.studies.patching_summary import (
    PATCH_SUMMARY,
    attribution_agreement,
    moved,
    patching_verdict,
    summarise_patching,
)


def rows(
    effects: dict[tuple[str, int, str, str], list[float | None]], subset: str = "EDGE"
) -> pd.DataFrame:
    """Rows from (direction, layer, site, way) to an effect a pair (None = the pair lacks it)."""
    out = []
    for (direction, layer, site, way), values in effects.items():
        for i, effect in enumerate(values):
            if effect is not None:
                out.append(
                    {
                        "direction": direction,
                        "seed": None if direction in ("patch", "attribution") else 0,
                        "layer": layer,
                        "site": site,
                        "pos": -1 - (i % 2 if site == "z" else 0),
                        "alpha": np.nan,
                        "prompt_id": f"pair{i}",
                        "subset": subset,
                        "split": "holdout",
                        "score": 4 * effect - 2,
                        "way": way,
                        "role": "end-1",
                        "head": 1 if site == "z" else None,
                        "neuron": None,
                        "clean": 2.0,
                        "corrupted": -2.0,
                        "effect": effect,
                        "token": "\\n",
                    }
                )
    whole = dict.fromkeys(("seed", "layer", "pos", "head", "neuron"), "Int64")
    return pd.DataFrame(out).astype(whole)


RNG = np.random.default_rng(0)
STRONG = list(RNG.normal(0.6, 0.1, 12))
NULL = list(RNG.normal(0.0, 0.1, 12))
TABLE = rows(
    {
        ("patch", 0, "attn_out", "denoise"): STRONG,
        ("same_class", 0, "attn_out", "denoise"): NULL,
        ("random", 0, "attn_out", "denoise"): NULL[::-1],
        ("patch", 1, "attn_out", "denoise"): NULL[3:] + NULL[:3],
        ("same_class", 1, "attn_out", "denoise"): [*NULL[5:], *[None] * 5],
        ("patch", 1, "z", "denoise"): STRONG[:7],
        ("patch", 0, "attn_out", "noise"): [1 - x for x in STRONG],
        ("same_class", 0, "attn_out", "noise"): [1 - x for x in NULL],
    }
)


def cell(summary: pd.DataFrame, direction: str, layer: int, site: str, way: str) -> pd.Series:
    part = summary[(summary["direction"] == direction) & (summary["layer"] == layer)]
    part = part[(part["site"] == site) & (part["way"] == way)]
    assert len(part) == 1
    return part.iloc[0]


def test_the_public_columns_come_first():
    summary = summarise_patching(TABLE)
    assert list(summary.columns) == PATCH_SUMMARY
    assert PATCH_SUMMARY[: len(CONTRACT)] == CONTRACT
    assert len(summary) == TABLE.groupby(["direction", "layer", "site", "way"]).ngroups


def test_effects_are_means_over_the_pairs_that_have_them():
    summary = summarise_patching(TABLE, seed=3)
    strong = cell(summary, "patch", 0, "attn_out", "denoise")
    assert strong["n"] == 12
    assert strong["effect_mean"] == pytest.approx(np.mean(STRONG))
    want = mean_interval(STRONG, seed=3)[0]
    assert [strong["effect_lo"], strong["effect_hi"]] == pytest.approx(list(want))
    assert strong["score_mean"] == pytest.approx(4 * np.mean(STRONG) - 2)
    assert strong["refusal_rate"] == np.mean(np.array(STRONG) > 0.5)
    assert cell(summary, "same_class", 1, "attn_out", "denoise")["n"] == 7
    assert strong["pos"] == -1
    assert pd.isna(cell(summary, "patch", 1, "z", "denoise")["pos"])  # it differs between pairs
    assert cell(summary, "patch", 1, "z", "denoise")["head"] == 1


def test_p_is_against_the_same_class_on_the_same_pairs():
    summary = summarise_patching(TABLE)
    assert cell(summary, "patch", 0, "attn_out", "denoise")["p_value"] < 0.002
    assert cell(summary, "patch", 0, "attn_out", "noise")["p_value"] < 0.002
    weak = cell(summary, "patch", 1, "attn_out", "denoise")
    shifted = np.array(NULL[3:] + NULL[:3])[:7] - np.array(NULL[5:])
    assert weak["p_value"] == sign_flip_p(shifted[None])[0]
    assert pd.isna(cell(summary, "patch", 1, "z", "denoise")["p_value"])  # no control there
    assert summary.loc[summary["direction"] != "patch", "p_value"].isna().all()


def test_moved_is_the_same_both_ways_round():
    table = moved(summarise_patching(TABLE))
    there = cell(table, "patch", 0, "attn_out", "denoise")
    back = cell(table, "patch", 0, "attn_out", "noise")
    for name in ("moved", "moved_lo", "moved_hi"):
        assert there[name] == pytest.approx(back[name], abs=0.02)
    assert (table["moved_lo"] <= table["moved"] + 1e-12).all()
    assert (table["moved"] <= table["moved_hi"] + 1e-12).all()


def test_the_verdict_names_the_layers_that_carry():
    verdict = patching_verdict(summarise_patching(TABLE))
    record = next(r for r in verdict if (r["way"], r["site"]) == ("denoise", "attn_out"))
    assert [c["layer"] for c in record["carries"]] == [0]
    assert record["most"]["layer"] == 0
    assert record["n_cells"] == 2
    assert abs(record["furthest_same_class"]["moved"]) < 0.1
    assert record["furthest_random"]["layer"] == 0
    heads = next(r for r in verdict if r["site"] == "z")
    assert heads["carries"] == []  # nothing stands beside it
    assert heads["furthest_same_class"] is None
    assert heads["most"]["head"] == 1


def test_agreement_of_the_gradient_with_exact_patches():
    layers = range(6)
    exact = {("patch", i, "attn_out", "denoise"): [0.1 * i, 0.1 * i + 0.02] for i in layers}
    good = {("attribution", i, "attn_out", "denoise"): [0.2 * i, 0.2 * i] for i in layers}
    good[("attribution", 5, "attn_out", "denoise")] = [3.0, 3.0]
    record = attribution_agreement(summarise_patching(rows(exact | good)))[0]
    assert record["rank_correlation"] == {"all": 1.0, "attn_out": 1.0}
    assert record["worst"]["layer"] == 5
    assert record["worst"]["attribution"] == 3.0
    assert record["worst"]["moved"] == pytest.approx(0.51)
    still = {
        ("patch", 9, "z", "denoise"): [0.0, 0.0],
        ("attribution", 9, "z", "denoise"): [0.0] * 2,
    }
    same = attribution_agreement(summarise_patching(rows(exact | good | still)))[0]
    assert same["n_cells"] == record["n_cells"] == 6  # what nothing moves is not counted
    lone = attribution_agreement(
        summarise_patching(rows({("patch", 0, "z", "denoise"): [1.0, 2.0]}))
    )[0]
    assert lone["rank_correlation"]["all"] is None


def test_tables_show_effects_beside_their_controls(capsys):
    both = pd.concat([TABLE, rows({("patch", 0, "attn_out", "denoise"): STRONG}, "BENIGN")])
    summary = summarise_patching(both)
    print_patching(summary, "layer", "site")
    print_carriers(summary, "attn_out")
    print_attribution_agreement(summary)
    out = capsys.readouterr().out
    assert "% of the gap moved towards clean: denoise, EDGE pairs (n=7 to 12)" in out
    assert "% of the gap moved towards corrupted: noise, EDGE pairs (n=12)" in out
    assert "denoise, BENIGN pairs" in out
    assert f"{np.mean(STRONG):.2f} [" in out
    assert "end-1 '\\n'" in out
    assert "attn_out carries it at layers: 0 (" in out
    assert "attn_out carries it at layers: none [denoise, BENIGN pairs]" in out
    assert "rank correlation not defined" in out
    assert max(map(len, out.splitlines())) <= 118


def test_nothing_moved_has_no_sign(capsys):
    still = rows({("patch", layer, "attn_out", "denoise"): [-1e-9, -2e-9] for layer in (0, 1)})
    print_patching(summarise_patching(still), "layer", "site")
    out = capsys.readouterr().out
    assert "0.00 [0.00, 0.00]" in out
    assert not re.search(r"-0(\.0+)?(?![.\d])", out)


def test_a_wide_grid_shows_evenly_spaced_layers(capsys):
    many = rows({("patch", layer, "attn_out", "denoise"): [0.5, 0.6] for layer in range(80)})
    print_patching(summarise_patching(many), "role", "layer", top=1)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 118
    header = next(line for line in out.splitlines() if "role \\ layer" in line)
    assert " 0┃" in header
    assert " 79┃" in header
