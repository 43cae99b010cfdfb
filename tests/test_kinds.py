"""Kinds of refusal: laws of cosines and shares, and a planted model that refuses in two ways."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import planted
import pytest
from small_runs import small_run

from refusal_dial.cli.flags import ALL_HARMFUL, HARMFULNESS, REFUSED_EDGE, KindFlags
from refusal_dial.common import DialError
from refusal_dial.data.prompts import load_prompts
from refusal_dial.report.kinds import is_control, kind_lines, kinds_figure, print_kinds
from refusal_dial.report.page import figures_of, report_page, verdict_lines
from refusal_dial.report.reading import read_run
from refusal_dial.run.folder import read_table
from refusal_dial.run.plan import compute_all
from refusal_dial.stats.cosines import (
    Contrast,
    apart_p,
    first_halves,
    prompt_draws,
    share_of_draws,
    split_angles,
    split_cosines,
)
from refusal_dial.studies.base import load_study
from refusal_dial.studies.kinds import (
    geometry,
    kind_plan,
    kinds_of,
    refusal_reasons,
    study_kinds,
    summarise_kinds,
)

# --- cosines and angles where the answer is known

D, N = 40, 24


def clusters(*means, noise=1.0, n=N, seed=0):
    """Contrasts of n prompts about each mean against the same n prompts about 0."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate([mean + noise * rng.standard_normal((n, D)) for mean in (0.0, *means)])
    negative = np.arange(n)
    return [Contrast(rows, negative + n * i, negative) for i in range(1, len(means) + 1)]


def along(angle, length):
    """At this angle (degrees) to the first axis."""
    vector = np.zeros(D)
    vector[:2] = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return length * vector


def test_halves_share_no_prompt_and_divide_every_group_evenly():
    contrasts = clusters(along(0, 1), along(90, 1), n=10)
    for half in first_halves(contrasts, 5, seed=1):
        for one in contrasts:
            assert half[one.positive].sum() == 5
            assert half[one.negative].sum() == 5
    assert not np.array_equal(*first_halves(contrasts, 2, seed=1))


def test_without_noise_a_cosine_is_that_of_the_means_and_its_ceiling_is_1():
    found = split_cosines(clusters(along(0, 3), along(60, 2), noise=1e-6), n_resamples=50)
    np.testing.assert_allclose(found.value, [[1, 0.5], [0.5, 1]], atol=1e-4)
    np.testing.assert_allclose(found.ceiling, np.ones((2, 2)), atol=1e-4)
    assert (found.hi - found.lo < 1e-3).all()
    angles = split_angles(clusters(along(0, 3), along(60, 2), noise=1e-6), 1)
    np.testing.assert_allclose(angles[0], [[0, 60], [60, 0]], atol=0.1)


def test_the_same_negative_prompts_make_no_two_directions_alike():
    """Of noise alone, directions from the same negative prompts have a cosine of one half."""
    apart, naive = [], []
    for seed in range(20):
        one, other = clusters(along(0, 0), along(90, 0), seed=seed)
        apart.append(split_cosines([one, other], n_resamples=2, seed=seed).value[0, 1])
        means = [
            c.activations[c.positive].mean(0) - c.activations[:N].mean(0) for c in (one, other)
        ]
        naive.append(means[0] @ means[1] / np.prod([np.linalg.norm(m) for m in means]))
    assert np.mean(naive) == pytest.approx(0.5, abs=0.1)
    assert abs(np.mean(apart)) < 0.1


def test_one_kind_twice_reaches_its_ceiling_and_two_at_right_angles_have_nothing():
    within, over = 0, 0
    for seed in range(10):
        contrasts = clusters(along(0, 3), along(0, 3), along(90, 3), seed=seed)
        found = split_cosines(contrasts, seed=seed)
        assert found.value[0, 1] == pytest.approx(found.ceiling[0, 1], abs=0.1)
        within += found.lo[0, 1] <= found.ceiling[0, 1] <= found.hi[0, 1]
        over += found.lo[0, 2] <= 0 <= found.hi[0, 2]
        assert found.ceiling[0, 2] > 0.3
    assert within >= 8
    assert over >= 8


def test_groups_that_are_apart_have_a_small_p_and_others_any():
    rng = np.random.default_rng(3)
    one, other = rng.standard_normal((2, 15, D))
    assert apart_p(one, other + along(0, 4)) == pytest.approx(1e-4)
    ps = [apart_p(*rng.standard_normal((2, 8, D)), n_permutations=99) for _ in range(100)]
    assert np.mean(np.array(ps) <= 0.05) <= 0.12


def test_a_share_is_of_the_same_draws_and_of_nothing_there_is_none():
    draws = prompt_draws(30, 300, seed=0)
    np.testing.assert_allclose(draws.sum(1), 1)
    values = np.random.default_rng(0).normal(2, 0.5, 30)
    share, lo, hi = share_of_draws(draws @ (0.25 * values), draws @ values, 30)
    assert (share, lo, hi) == pytest.approx((0.25, 0.25, 0.25))
    assert np.isnan(share_of_draws(draws @ values, draws @ (values - 2), 30)).all()


# --- a planted model: z is refused in one way, x in another

ONE, AGAIN, TWO = "HARMFUL:first", "HARMFUL:again", "HARMFUL:second"


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """(opened study, flags, summary) of prompts whose categories are z, z again, and x."""
    place = tmp_path_factory.mktemp("kinds")
    folder, _ = planted.two_ways_folder(place / "model")
    rows = []
    for subset, words in (
        ("HARMFUL", {"zzzz": ("first", "again"), "xxxx": ("second",)}),
        ("EDGE", {"abcd": ("plain",), "bcda": ("plain",)}),
        ("BENIGN", {"abcd": ("plain",), "bcda": ("plain",)}),
    ):
        for word, categories in words.items():
            for i in range(24):
                text = f"{word} {'tell make find show'.split()[i % 4]} me {chr(97 + i % 20)}"
                text += " please" if subset == "BENIGN" and i % 3 == 0 else ""
                about = {"subset": subset, "category": categories[i % len(categories)]}
                rows.append({"id": f"{subset}{word}{i}", "text": text, **about})
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = KindFlags(
        model=str(folder),
        prompts=str(place / "prompts.jsonl"),
        refusal_tokens="I,J",
        device="cpu",
        dtype="float32",
        layer=planted.LAYER + 1,
        alphas=(-0.5, 0.5),
        n_random=1,
        n_splits=4,
        n_resamples=200,
    )
    study = load_study(flags, (flags.layer,))
    opened = study_kinds(study, flags)
    rows = compute_all(study.model, kind_plan(opened, flags))
    measured = summarise_kinds(rows, opened.scored)
    return opened, flags, pd.concat([geometry(opened, flags), measured], ignore_index=True)


def line(summary, measure, kind, other):
    part = summary[(summary["measure"] == measure) & (summary["kind"] == kind)]
    (index,) = part.index[part["other"] == other]
    return part.loc[index]


def test_nothing_is_learned_from_a_prompt_that_is_measured(kinds):
    opened, _, _ = kinds
    by_name = {kind.name: kind for kind in opened.kinds}
    held = {prompt.id for prompt in opened.tested}
    for name in (ONE, TWO, ALL_HARMFUL):
        mine = [prompt.id in held for prompt in by_name[name].positive]
        assert abs(2 * sum(mine) - len(mine)) <= 2
        assert opened.directions[name].provenance.layer == planted.LAYER + 1
    assert by_name[HARMFULNESS].pos < -1
    assert {name for name in opened.directions if is_control(name)} == {"permuted 0", "random 0"}


def test_two_planted_kinds_are_apart_and_removing_one_leaves_the_other(kinds):
    _, _, summary = kinds
    cosine = line(summary, "cosine", ONE, TWO)
    assert cosine["hi"] < 0.5 * cosine["ceiling"]
    assert line(summary, "cosine", ONE, ONE)["value"] > 0.9
    assert line(summary, "cosine", AGAIN, TWO)["p_holm"] < 0.05
    for a, b in ((ONE, TWO), (TWO, ONE)):
        assert line(summary, "scored", a, b)["lo"] > 0.8
        assert line(summary, "steered", a, b)["lo"] > 0.8
        assert line(summary, "scored", a, a)["hi"] < 0.2
        assert line(summary, "steered", a, a)["value"] == pytest.approx(0, abs=0.01)


def test_one_planted_kind_twice_is_at_its_ceiling_and_removing_either_removes_both(kinds):
    _, _, summary = kinds
    cosine = line(summary, "cosine", ONE, AGAIN)
    assert cosine["value"] == pytest.approx(cosine["ceiling"], abs=0.05)
    assert line(summary, "cosine", AGAIN, ONE)["p_holm"] != 0  # tested once, in one order
    assert line(summary, "scored", ONE, AGAIN)["hi"] < 0.2
    assert line(summary, "steered", ONE, AGAIN)["hi"] < 0.2
    angle = line(summary, "angle 1", ONE, AGAIN)
    assert angle["value"] == pytest.approx(angle["ceiling"], abs=10)
    assert line(summary, "angle 1", ONE, TWO)["value"] > angle["value"] + 20


def test_by_reason_the_planted_kinds_are_those_of_the_replies(kinds):
    """z is refused for one reason and x for another; what is not refused is in no kind."""
    opened, flags, _ = kinds
    harmful = [p for p in opened.study.prompts if p.subset == "HARMFUL"]
    reasons = {p.id: "harm" if p.text.startswith("z") else "values" for p in harmful}
    one, two = ("reason:harm", "reason:values")
    found, _ = kinds_of(opened.study, flags, reasons)
    by_name = {kind.name: kind for kind in found}
    assert list(by_name)[:3] == [one, two, ALL_HARMFUL]
    assert {p.id for p in by_name[one].positive} == {
        i for i, why in reasons.items() if why == "harm"
    }
    again = replace(
        opened,
        kinds=tuple(found),
        contrasts=tuple(
            Contrast(
                opened.contrasts[0].activations,
                np.array(opened.study.rows(kind.positive)),
                np.array(opened.study.rows(kind.negative)),
            )
            for kind in found
        ),
    )
    cosine = line(geometry(again, flags), "cosine", one, two)
    assert cosine["hi"] < 0.5 * cosine["ceiling"]
    assert cosine["p_holm"] < 0.05
    less = {i: why for i, why in reasons.items() if why == "harm"} | {harmful[-1].id: "values"}
    assert kinds_of(opened.study, flags, less)[1] == {two: 1}


def test_reasons_are_read_in_replies_that_a_judge_calls_refusals(tmp_path):
    rows = load_prompts("embedded")
    by_subset = {p.subset: [q for q in rows if q.subset == p.subset] for p in rows}
    some = [prompt for group in by_subset.values() for prompt in group[:6]]
    lines = [{"id": p.id, "text": p.text, "subset": p.subset} for p in some]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    flags = KindFlags(prompts=str(tmp_path / "few.jsonl"), device="cpu", refusal_tokens="I,Sorry")
    study = load_study(flags, (16,))
    reasons = refusal_reasons(study, flags)
    assert {p.id for p in some if p.subset == "HARMFUL"} <= set(reasons)
    assert not {p.id for p in some if p.subset == "BENIGN"} & set(reasons)
    assert set(reasons.values()) == {"harm", "none"}  # the two ways in which this model refuses


def test_controls_find_nothing(kinds):
    _, _, summary = kinds
    for name in (ONE, TWO):
        own = line(summary, "cosine", "random", name)
        assert abs(own["value"]) < 0.3
        permuted = line(summary, "cosine", "permuted 0", name)
        assert permuted["lo"] <= 0 <= permuted["hi"]
        assert line(summary, "scored", "random 0", name)["lo"] > 0.8
    assert line(summary, "angle 1", "random", ONE)["value"] > 50


def test_what_is_printed_and_drawn_says_it(kinds, capsys):
    _, _, summary = kinds
    lines = [" ".join(one) for one in kind_lines(summary)]
    assert "3 kinds of refusal" in lines[0]
    unknown = summary.assign(value=summary["value"].where(summary["measure"] == "cosine"))
    assert not any("one kind removed" in about for about, _, _ in kind_lines(unknown))
    print_kinds(summary)
    printed = capsys.readouterr().out
    assert "own refusal left" in printed
    figure = kinds_figure(summary, "a <b> title")
    assert [trace.type for trace in figure.data] == ["heatmap", "heatmap", "heatmap", "scatter"]


# --- the knob by hand


def cell(direction, strength, harmful, edge, ablated=""):
    frames = []
    for subset, values in (("HARMFUL", harmful), ("EDGE", edge), ("BENIGN", np.zeros(8))):
        ids = [f"{subset}{i}" for i in range(len(values))]
        frames.append(pd.DataFrame({"prompt_id": ids, "subset": subset, "score": values}))
    about = {"direction": direction, "ablated": ablated, "strength": strength}
    return pd.concat(frames).assign(**about)


def swept(slope, extra=0.0):
    """HARMFUL moves by 4 a unit of alpha; EDGE by `slope` times that under the other kind, plus
    `extra` where it moves at all."""
    harmful, edge = np.linspace(1, 3, 8), np.linspace(-1, 1, 8)
    cells = [cell("baseline", 0.0, harmful, edge), cell("baseline", 0.0, harmful, edge, "other")]
    for alpha in (-1.0, 1.0):
        cells.append(cell(ALL_HARMFUL, alpha, harmful + 4 * alpha, edge + 2 * alpha))
        cells.append(cell("other", alpha, harmful + 2 * alpha, edge + 2 * slope * alpha + extra))
        cells.append(cell("weak", alpha, harmful + 0.1 * alpha, edge))
    top = [cell(name, 1.0, harmful, edge + 1, "other") for name in (ALL_HARMFUL, "other", "weak")]
    return pd.concat([*cells, *top], ignore_index=True)


def knob(rows, name):
    summary = summarise_kinds(rows, {ALL_HARMFUL: [f"HARMFUL{i}" for i in range(8)]})
    return line(summary, "knob", name, ALL_HARMFUL)


def test_directions_on_one_trade_off_differ_by_nothing_whatever_their_strength():
    found = knob(swept(0.5), "other")
    assert found["value"] == pytest.approx(0, abs=1e-9)
    assert found["reach"] == pytest.approx(0.5)
    assert found["whole"] == pytest.approx(4)


def test_a_direction_that_over_refuses_more_at_an_equal_shift_is_told():
    found = knob(swept(0.5, extra=0.6), "other")
    assert found["lo"] > 0
    assert 0.2 < found["value"] < 0.6


def test_a_direction_that_hardly_moves_is_not_compared():
    found = knob(swept(0.5), "weak")
    assert found["reach"] < 0.1
    assert np.isnan(found["value"])


def test_a_run_without_the_unsteered_model_is_told():
    rows = swept(0.5)
    with pytest.raises(DialError, match="the unsteered model is missing"):
        summarise_kinds(rows[rows["direction"] != "baseline"], {})


# --- mistakes, and a run as it lies there


def test_what_cannot_be_read_or_has_too_few_is_one_line(kinds):
    opened, _, _ = kinds
    with pytest.raises(DialError, match="thoughts differ in length: expected --thinking off"):
        kinds_of(opened.study, KindFlags(thinking="on"))
    with pytest.raises(DialError, match=r"HARMFUL: 48 prompts of a kind, and --least is 99"):
        kinds_of(opened.study, KindFlags(least=99))
    some, few = kinds_of(opened.study, KindFlags(least=13))
    assert few == {ONE: 12, AGAIN: 12}
    assert [kind.name for kind in some][:3] == [TWO, ALL_HARMFUL, HARMFULNESS]
    assert REFUSED_EDGE in {kind.name for kind in some}


def test_without_a_template_harmfulness_has_no_place_of_its_own(kinds):
    opened, _, _ = kinds
    some, few = kinds_of(opened.study, KindFlags(plain=True))
    assert few[HARMFULNESS] == 0
    assert HARMFULNESS not in {kind.name for kind in some}


def test_a_small_run_is_read_back_and_its_page_has_the_figure(small_material, capsys):
    folder = small_run(small_material, "refusal_kinds").folder
    summary = read_table(folder, "summary")
    print_kinds(summary)
    assert "Cosines of halves" in capsys.readouterr().out
    reading = read_run(folder)
    assert reading.kind == "kinds"
    assert list(figures_of(reading)) == ["kinds"]
    assert verdict_lines(reading)
    assert "kinds" in report_page([reading])
