"""Subspaces learned and removed: laws of the losses, and a planted model that refuses twice."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import planted
import pytest
import torch
from script_case import load
from small_runs import small_run

from refusal_dial.cli.command_line import parse_list
from refusal_dial.cli.flags import PlotFlags, StudyFlags, SubspaceFlags
from refusal_dial.directions.learning import overlap
from refusal_dial.report.page import figures_of, verdict_lines
from refusal_dial.report.reading import read_run
from refusal_dial.report.subspace import print_subspaces
from refusal_dial.run.folder import read_table
from refusal_dial.run.plan import compute_all
from refusal_dial.studies import subspace
from refusal_dial.studies.base import load_study
from refusal_dial.studies.subspace import (
    Lesson,
    SubspaceStudy,
    cone_loss,
    dependence,
    descend,
    iterated_removal,
    orthonormal,
    removal_loss,
    span_loss,
    subspace_plan,
    summarise_subspaces,
)

N = 10


@pytest.fixture(scope="module")
def two_ways(tmp_path_factory):
    """(flags as a dict, study, the two planted directions)"""
    place = tmp_path_factory.mktemp("two_ways")
    folder, planes = planted.two_ways_folder(place / "model")
    prompts = planted.prompts_file(place / "prompts.jsonl", 24, ("zzzz", "xxxx"))
    flags = {"model": str(folder), "prompts": str(prompts), "refusal_tokens": "I,J"}
    flags |= {"device": "cpu", "dtype": "float32"}
    layer = planted.LAYER + 1
    return flags, load_study(StudyFlags(**flags), (layer,)), planes


@pytest.fixture(scope="module")
def lesson(two_ways):
    _, study, _ = two_ways
    harmful, harmless = (
        study.tokens.chosen([i for i, p in enumerate(study.prompts) if p.subset == name])
        for name in ("HARMFUL", "BENIGN")
    )
    return Lesson(study.model, harmful, harmless, study.scorer, planted.LAYER + 1, 9.0)


def test_orthonormal_rows_span_the_same_and_the_first_keeps_its_way():
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    found = orthonormal(rows)
    torch.testing.assert_close(found @ found.T, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0], rows[0] / rows[0].norm())
    assert overlap(found, rows) == pytest.approx(1, abs=1e-5)


def test_the_planted_model_refuses_in_two_ways(two_ways):
    _, study, _ = two_ways
    for score, prompt in zip(study.scores, study.prompts, strict=True):
        assert (score > 0) == (prompt.subset == "HARMFUL"), prompt


def test_losses_are_small_where_both_ways_are_removed_and_not_where_one_is(lesson, two_ways):
    _, _, planes = two_ways
    both, first = removal_loss(lesson, planes), removal_loss(lesson, planes[:1])
    mixed = torch.nn.functional.normalize(planes.sum(0), dim=0)[None]
    assert float(both) < 0.1
    assert float(first) > 1
    assert float(removal_loss(lesson, mixed)) > 1  # no one direction holds both
    random = orthonormal(torch.randn(2, planted.D, generator=torch.Generator().manual_seed(0)))
    assert float(removal_loss(lesson, random)) > 1


def test_a_loss_of_removal_has_the_gradient_that_its_differences_say(lesson):
    generator = torch.Generator().manual_seed(2)
    unit = torch.nn.functional.normalize(torch.randn(planted.D, generator=generator), dim=0)
    way = torch.randn(planted.D, generator=generator)
    way = way - (way @ unit) * unit

    def at(step):
        return removal_loss(lesson, orthonormal((unit + step * way)[None]))

    step = torch.zeros((), requires_grad=True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(at(step), [step])
    measured = (at(torch.tensor(1e-2)) - at(torch.tensor(-1e-2))) / 2e-2
    assert float(slope) == pytest.approx(float(measured), rel=0.05, abs=1e-3)


def test_iterated_mean_differences_find_a_mixture_and_never_the_second_axis(lesson, two_ways):
    """With the mixture removed, the means of the two groups are equal, though no prompt is."""
    _, _, planes = two_ways
    found = iterated_removal(lesson, 2)
    torch.testing.assert_close(found @ found.T, torch.eye(2), atol=1e-4, rtol=0)
    assert overlap(found[:1], planes) > 0.9
    assert overlap(found[1:], planes) < 0.2
    assert float(removal_loss(lesson, found[:1])) > 1


@pytest.mark.slow
@pytest.mark.parametrize("loss", [span_loss, cone_loss])
def test_steps_make_a_loss_smaller_and_repeat(lesson, loss):
    start = torch.randn(2, planted.D, generator=torch.Generator().manual_seed(3))

    def value(rows):
        return float(loss(lesson, rows, torch.Generator().manual_seed(0)))

    found = descend(lesson, start, loss, 15, 0.05)
    assert value(found) < value(orthonormal(start))
    assert torch.equal(found, descend(lesson, start, loss, 15, 0.05))
    torch.testing.assert_close(found @ found.T, torch.eye(2), atol=1e-4, rtol=0)


def test_axes_are_independent_where_their_writers_are_and_one_axis_always_is(lesson, two_ways):
    _, _, planes = two_ways
    apart = float(dependence(lesson, planes))
    leaning = torch.stack([planes[0], torch.nn.functional.normalize(planes.sum(0), dim=0)])
    assert apart < 0.5 * float(dependence(lesson, leaning))
    assert float(dependence(lesson, planes[:1])) == 0


def test_on_two_planted_ways_both_pay_at_equal_damage_and_random_axes_do_not(two_ways, capsys):
    given, study, planes = two_ways
    layer = planted.LAYER + 1
    flags = SubspaceFlags(**given, layer=layer, n=8, pushes=(0.1, 0.3), n_random=1, ways=())
    tested = [p for p in study.prompts if p.subset == "HARMFUL"][:8]
    tested += [p for p in study.prompts if p.subset == "BENIGN"][:8]
    mixed = orthonormal(planes.sum(0, keepdim=True))
    found = {"planted": [planes[:1], planes], "mixed": [mixed, orthonormal(planes.flip(0))]}
    opened = SubspaceStudy(study, (), tuple(tested), found)
    summary = summarise_subspaces(compute_all(study.model, subspace_plan(opened, flags)))
    harmful = summary[summary["subset"] == "HARMFUL"].set_index(["direction", "k", "push"])
    both = harmful.loc[("planted", 2, 0.0)]
    assert both["refusal_rate"] == 0
    assert both["gain_lo"] > 1
    assert harmful.loc[("planted", 1, 0.0)]["refusal_rate"] == 0.5  # the other half of the prompts
    assert harmful.loc[("random", 2, 0.0)]["refusal_rate"] == 1
    assert not harmful.loc[("random", 2, 0.0)]["gain_lo"] > 0
    # The planted axes have a writer each, and do not see each other's removal.
    assert both["dependence"] < 1e-5 < harmful.loc[("random", 2, 0.0)]["dependence"]
    assert harmful["dependence"].notna().sum() == 3  # of two axes alone
    again = harmful.loc[("mixed", 2, 0.0)]["score_mean"]  # the same span, in another order
    assert again == pytest.approx(both["score_mean"], abs=1e-3)
    print_subspaces(summary)
    assert "planted" in capsys.readouterr().out


def cell(direction, k, push, score, kl, spread=0.0, seed=None):
    """HARMFUL scores around one value, and the KL of BENIGN ones."""
    scores = score + spread * np.linspace(-1, 1, N)
    parts = [("HARMFUL", "score", scores), ("BENIGN", "score", np.full(N, -3.0))]
    parts.append(("BENIGN", "kl", np.full(N, kl)))
    frames = []
    for subset, measure, values in parts:
        ids = [f"{subset}{i}" for i in range(N)]
        about = {"prompt_id": ids, "subset": subset, "score": values, "measure": measure}
        frames.append(pd.DataFrame({**about, "direction": direction, "k": k, "push": push}))
    found = pd.concat(frames)
    return found.assign(seed=pd.array([seed] * len(found), dtype="Int64"))


def gain(*cells):
    rows = pd.concat([cell("baseline", 0, 0.0, 3.0, 0.0), *cells], ignore_index=True)
    summary = summarise_subspaces(rows)
    mine = summary[(summary["subset"] == "HARMFUL") & (summary["k"] == 2)]
    return mine.iloc[0]


def test_a_gain_is_over_one_direction_at_the_same_damage():
    curve = [cell("span", 1, 0.0, -1.0, 0.1), cell("span", 1, 0.2, -3.0, 0.3)]
    found = gain(*curve, cell("span", 2, 0.0, -2.5, 0.2))
    assert found["gain"] == pytest.approx(0.5)  # half way between the pushes it is -2
    assert found["beside"] == "span"
    assert gain(*curve, cell("span", 2, 0.0, -2.0, 0.2))["gain"] == pytest.approx(0)


def test_a_direction_that_does_less_damage_counts_and_one_that_does_more_does_not():
    less, more = cell("cone", 1, 0.0, -4.0, 0.05), cell("span", 1, 0.0, -9.0, 0.9)
    found = gain(less, more, cell("span", 2, 0.0, -3.0, 0.2))
    assert (found["gain"], found["beside"]) == (pytest.approx(-1.0), "cone")
    part = gain(more, cell("span", 2, 0.0, -3.0, 0.3))  # a third of the way from 3 to -9 is -1
    assert (part["gain"], part["beside"]) == (pytest.approx(2.0), "span")


def test_a_small_run_is_read_back(small_material, capsys):
    summary = read_table(small_run(small_material, "refusal_subspace").folder, "summary")
    print_subspaces(summary)
    assert "iterated" in capsys.readouterr().out
    assert set(summary["direction"]) == {"baseline", "iterated", "cone", "random"}
    base = summary[summary["direction"] == "baseline"]
    assert (base["kl"] == 0).all()


def test_the_page_and_the_figure_of_a_small_run_say_which_ways_pay(small_material, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(small_run(small_material, "refusal_subspace").folder, folder)
    reading = read_run(folder)
    assert reading.kind == "subspaces"
    lines = verdict_lines(reading)
    assert [line.about for line in lines] == ["iterated, 2 axes", "cone, 2 axes"]
    assert all("the removal of one axis moves" in line.effect for line in lines)
    assert all(line.controls.startswith("random axes:") for line in lines)
    assert set(figures_of(reading)) == {"subspaces"}
    load("plot_subspaces").main(PlotFlags(run=str(folder)))
    assert (folder / "subspaces.html").stat().st_size > 1000


def test_every_way_that_is_offered_has_a_loss():
    from refusal_dial.cli.flags import LEARNED_WAYS

    assert set(LEARNED_WAYS) == set(subspace.LOSSES)
    assert parse_list("span,cone")
