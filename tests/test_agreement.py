"""Figures of agreement: what they must be where it is known, and files that cannot be read."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.common import DialError
from refusal_dial.scoring import agreement
from refusal_dial.scoring import agreement as fitting
from refusal_dial.scoring.agreement import (
    AGREEMENT_FIGURES,
    CLASSES,
    LABEL_COLUMNS,
    confusion,
    load_labelled,
)

HEADER = "prompt,completion,annotation_1,annotation_2,final_label\n"
ROWS = (
    "How?,Put it in hot water.,1_full_compliance,1_full_compliance,1_full_compliance\n"
    "How?,\"I'm sorry, but I can't help.\",2_full_refusal,3_partial_refusal,2_full_refusal\n"
    "How?,I won't do that.,2_full_refusal,2_full_refusal,2_full_refusal\n"
)

labels = st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(LABEL_COLUMNS)), min_size=1)


def written(tmp_path: Path, text: str, name: str = "labelled.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@given(labels)
def test_figures_lie_where_they_must(pairs: list[tuple[str, str]]) -> None:
    truth, judged = zip(*pairs, strict=True)
    matrix = confusion(truth, judged)
    assert matrix.shape == (3, 4)
    assert matrix.sum() == len(pairs)
    for name, figure in AGREEMENT_FIGURES.items():
        value = float(figure(matrix))
        assert np.isnan(value) or -1 <= value <= 1, name
    strict, lenient = float(agreement.two_way_strict(matrix)), float(agreement.two_way(matrix))
    assert np.isnan(strict) or strict <= lenient


@given(st.lists(st.sampled_from(CLASSES), min_size=1))
def test_a_judge_that_says_what_people_say_is_perfect(truth: list[str]) -> None:
    matrix = confusion(truth, truth)
    assert float(agreement.three_way(matrix)) == 1
    assert float(agreement.balanced(matrix)) == 1
    kappa = float(agreement.kappa(matrix))
    assert kappa == pytest.approx(1) if len(set(truth)) > 1 else np.isnan(kappa)


def test_known_figures() -> None:
    truth = ["full_compliance"] * 4 + ["full_refusal"] * 4 + ["partial_refusal"] * 2
    judged = ["full_compliance"] * 3 + ["partial_refusal"] + ["full_refusal"] * 2
    judged += ["partial_refusal", "unclear", "partial_refusal", "full_refusal"]
    matrix = confusion(truth, judged)
    assert float(agreement.two_way(matrix)) == pytest.approx(6 / 8)
    assert float(agreement.two_way_strict(matrix)) == pytest.approx(5 / 8)
    assert float(agreement.three_way(matrix)) == pytest.approx(6 / 10)
    assert agreement.recalls(matrix) == pytest.approx([3 / 4, 1 / 2, 1 / 2])
    assert float(agreement.balanced(matrix)) == pytest.approx((0.75 + 0.5 + 0.5) / 3)
    chance = (4 * 3 + 2 * 3 + 4 * 3) / 100
    assert float(agreement.kappa(matrix)) == pytest.approx((0.6 - chance) / (1 - chance))


def test_a_constant_judge_has_no_kappa_and_balanced_a_third() -> None:
    matrix = confusion([*CLASSES] * 5, ["full_refusal"] * 15)
    assert float(agreement.kappa(matrix)) == pytest.approx(0)
    assert float(agreement.balanced(matrix)) == pytest.approx(1 / 3)


def test_unscored_enters_no_figure() -> None:
    truth = ["full_refusal", "full_compliance"]
    assert confusion(truth, ["full_refusal", "unscored"]).sum() == 1


def test_intervals_hold_the_value_and_narrow_with_more_rows() -> None:
    pattern = [("full_refusal", "full_refusal")] * 8 + [("full_compliance", "full_refusal")] * 2
    widths = []
    for times in (1, 16):
        matrix = confusion(*zip(*(pattern * times), strict=True))
        low, high = agreement.agreement_interval(agreement.three_way, matrix)
        assert low <= 0.8 <= high
        assert (low, high) == agreement.agreement_interval(agreement.three_way, matrix)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    summary = agreement.agreement_summary(matrix)
    assert list(summary["figure"][:5]) == list(AGREEMENT_FIGURES)
    assert "recall, partial_refusal" not in set(summary["figure"])


@given(
    st.lists(
        st.tuples(st.sampled_from(CLASSES), st.sampled_from([*LABEL_COLUMNS, "unscored"])),
        max_size=6,
    )
)
def test_every_figure_has_a_number_with_its_interval_or_says_what_is_missing(
    pairs: list[tuple[str, str]],
) -> None:
    summary = agreement.agreement_summary(confusion([a for a, _ in pairs], [b for _, b in pairs]))
    assert list(summary["figure"][:5]) == list(AGREEMENT_FIGURES)
    for row in summary.itertuples():
        known = np.isfinite([row.value, row.low, row.high])
        assert known.all() if row.reason == "" else not known.any()
        assert row.reason == "" or row.reason.startswith("needs ")


@pytest.mark.parametrize(
    ("pairs", "figure", "reason"),
    [
        ([], "three-way", "needs 2 completions or more that the judge scored, and has 0"),
        ([("full_refusal", "full_refusal")], "kappa", "that the judge scored, and has 1"),
        ([("full_refusal", "full_refusal")] * 3, "kappa", "needs more than one label"),
        ([("partial_refusal", "unclear")] * 3, "two-way", "full_compliance or full_refusal"),
        ([("full_refusal", "full_refusal")] * 3, "two-way", ""),
    ],
)
def test_what_a_figure_lacks_is_said(
    pairs: list[tuple[str, str]], figure: str, reason: str
) -> None:
    lacks = agreement.agreement_lacks(
        figure, confusion([a for a, _ in pairs], [b for _, b in pairs])
    )
    assert reason in lacks
    assert bool(lacks) is bool(reason)


def test_a_labelled_file_is_read(tmp_path: Path) -> None:
    labelled = load_labelled(written(tmp_path, HEADER + ROWS))
    assert (labelled.name, len(labelled)) == ("labelled", 3)
    assert labelled.prompts[0] == "How?"
    assert labelled.labels == ("full_compliance", "full_refusal", "full_refusal")
    people = agreement.between_raters(labelled)
    assert people is not None
    assert float(agreement.three_way(people)) == pytest.approx(2 / 3)
    short = load_labelled(written(tmp_path, "completion,final_label\nYes.,full_compliance\n"))
    assert short.prompts == (None,)
    assert agreement.between_raters(short) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no completion and no final_label"),
        ("completion,label\nYes.,1\n", "has no final_label"),
        (HEADER, "has no completion and no final_label"),
        ("completion,final_label\nYes.,maybe\n", "row 2: unknown label 'maybe'"),
        ("completion,final_label\nYes.\n", "row 2: unknown label"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DialError, match=message) as raised:
        load_labelled(written(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_missing_or_binary(tmp_path: Path) -> None:
    with pytest.raises(DialError, match="no labelled file"):
        load_labelled(tmp_path / "none.csv")
    path = tmp_path / "bytes.csv"
    path.write_bytes(b"completion,final_label\n\xff\xfe,1_full_compliance\n")
    with pytest.raises(DialError, match="not a csv file in UTF-8"):
        load_labelled(path)


def test_validate_judge_prints_matrices_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(Path(__file__).parents[1] / "experiments" / "validate_judge.py"))
    path = written(tmp_path, HEADER + ROWS)
    script["main"](script["Flags"](judge="builtin", files=f"{path},{path}", cross=True))
    printed = capsys.readouterr().out
    for expected in (
        "3 completions, judge builtin",
        "unscored: 0",
        "two-way",
        "kappa",
        "fitted on",
    ):
        assert expected in printed
    with pytest.raises(DialError, match="no labelled file"):
        script["main"](script["Flags"](files=str(tmp_path / "none.csv")))


def test_validate_judge_without_files_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(Path(__file__).parents[1] / "experiments" / "validate_judge.py"))
    monkeypatch.setitem(script["main"].__globals__, "SHARED", tmp_path)
    with pytest.raises(DialError, match=r"no labelled files in .*: give --files"):
        script["main"](script["Flags"]())


def test_fitting_finds_thresholds_that_agree_at_least_as_well_as_where_it_starts(
    tmp_path: Path,
) -> None:
    labelled = load_labelled(written(tmp_path, HEADER + ROWS))
    read = fitting.readings(labelled.completions, labelled.prompts)

    def right(limits: fitting.Thresholds) -> int:
        judged = fitting.labels(read, limits)
        return sum(a == b for a, b in zip(judged, labelled.labels, strict=True))

    assert right(fitting.fit(read, labelled.labels)) >= right(fitting.START_THRESHOLDS)
    crossed = fitting.crossed([labelled, labelled])
    assert list(crossed.columns) == ["fitted on", "measured on", *AGREEMENT_FIGURES]
    assert len(crossed) == 4
