"""Scores against an independent float64 computation, their laws, and where the tokens come from."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_dial.common import DialError
from refusal_dial.model.tokens import log_total
from refusal_dial.scoring.logits import (
    FAMILIES,
    SMALLEST_FAMILY_VOCABULARY,
    LogitDiff,
    RefusalTokens,
    calibrated_tokens,
    family_tokens,
    listed_tokens,
    logit_diff,
    refusal_score,
)

LAW = settings(deadline=None, derandomize=True, max_examples=30)
V = 12
TOKENS = st.lists(st.integers(0, V - 1), min_size=1, max_size=V - 1, unique=True)


def some_logits(seed, scale):
    """Three rows: spread out, close together, and with ties."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(3, V)) * [[scale], [0.01], [1.0]]
    return np.vstack([rows[:2], rows[2:].round()]).astype(np.float32)


LOGITS = st.builds(some_logits, st.integers(0, 999), st.sampled_from([0.0, 1.0, 8.0, 40.0]))


def odds(row, tokens):
    """The reference definition, in plain Python."""
    top = max(row)
    exps = [math.exp(x - top) for x in row]
    p = math.fsum(exps[t] for t in tokens) / math.fsum(exps)
    return math.log(p + 1e-8) - math.log(1 - p + 1e-8)


def log_sum(row, tokens):
    top = max(row[t] for t in tokens)
    return top + math.log(math.fsum(math.exp(row[t] - top) for t in tokens))


@LAW
@given(LOGITS, TOKENS)
def test_the_refusal_score_is_the_log_odds_of_the_refusal_tokens(logits, tokens):
    got = refusal_score(torch.tensor(logits), tokens)
    assert got.dtype == torch.float64
    expected = [odds([float(x) for x in row], tokens) for row in logits]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_refusal_score_is_within_a_millionth_of_float64_on_a_real_vocabulary(dtype):
    """Refusal from all but impossible to all but certain, among 50,000 tokens."""
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(41, 50_000, generator=g)
    logits[:, 7] = torch.linspace(-40, 60, 41)
    logits = logits.to(dtype)
    wide = logits.double()
    rest = wide[:, [i for i in range(50_000) if i not in (7, 9)]].logsumexp(-1)
    odds = wide[:, [7, 9]].logsumexp(-1) - rest
    expected = torch.log(odds.sigmoid() + 1e-8) - torch.log((-odds).sigmoid() + 1e-8)
    got = refusal_score(logits, [7, 9])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert got.min() < -12
    assert got.max() > 18
    torch.testing.assert_close(log_total(logits), wide.logsumexp(-1), atol=1e-6, rtol=0)


@LAW
@given(LOGITS, TOKENS)
def test_the_refusal_score_is_bounded_by_its_epsilon(logits, tokens):
    bound = math.log1p(1e-8) - math.log(1e-8)
    assert (refusal_score(torch.tensor(logits), tokens).abs() <= bound + 1e-6).all()


def test_the_bounds_are_reached_and_even_odds_score_0():
    logits = torch.tensor([[900.0, 0.0, 0.0], [-900.0, 0.0, 0.0], [math.log(2.0), 0.0, 0.0]])
    bound = -math.log(1e-8)
    expected = torch.tensor([bound, -bound, 0.0], dtype=torch.float64)
    torch.testing.assert_close(refusal_score(logits, [0]), expected, atol=1e-6, rtol=0)


@LAW
@given(LOGITS, TOKENS, st.floats(0.01, 5.0))
def test_more_of_a_refusal_logit_never_means_less_refusal(logits, tokens, more):
    before = torch.tensor(logits).double()
    after = before.clone()
    after[:, tokens[0]] += more
    rounding = 1e-6
    assert (refusal_score(after, tokens) >= refusal_score(before, tokens) - rounding).all()
    other = next(t for t in range(V) if t not in tokens)
    after = before.clone()
    after[:, other] += more
    assert (refusal_score(after, tokens) <= refusal_score(before, tokens) + rounding).all()


def test_in_the_middle_of_the_dial_more_is_strictly_more():
    steps = torch.linspace(-8, 8, 33, dtype=torch.float64)
    logits = torch.zeros(33, V, dtype=torch.float64)
    logits[:, 4] = steps
    scores = refusal_score(logits, [4])
    assert (scores.diff() > 0).all()
    torch.testing.assert_close(scores.diff(), steps.diff(), atol=1e-3, rtol=0)  # log-odds: slope 1


@LAW
@given(LOGITS, TOKENS, st.floats(-1e4, 1e4))
def test_adding_a_constant_to_all_logits_changes_nothing(logits, tokens, constant):
    logits = torch.tensor(logits).double()
    against = [t for t in range(V) if t not in tokens]
    for score in (
        lambda x: refusal_score(x, tokens),
        lambda x: logit_diff(x, tokens, against),
    ):
        torch.testing.assert_close(score(logits + constant), score(logits), atol=1e-6, rtol=1e-6)


@LAW
@given(LOGITS, TOKENS)
def test_a_row_is_scored_by_itself_and_the_order_of_tokens_does_not_matter(logits, tokens):
    logits = torch.tensor(logits)
    whole = refusal_score(logits, tokens)
    alone = torch.cat([refusal_score(logits[i : i + 1], tokens) for i in range(3)])
    torch.testing.assert_close(whole, alone, atol=1e-12, rtol=0)
    torch.testing.assert_close(refusal_score(logits, tokens[::-1]), whole, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_logits_are_scored_in_double_precision(dtype):
    logits = (8 * torch.randn(50, 2000, generator=torch.Generator().manual_seed(0))).to(dtype)
    for got, expected in (
        (refusal_score(logits, [3, 7]), [odds(row, [3, 7]) for row in logits.double().tolist()]),
        (
            logit_diff(logits, [3], [7]),
            (logits.double()[:, 3] - logits.double()[:, 7]).tolist(),
        ),
    ):
        assert got.dtype == torch.float64
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-9)


@LAW
@given(LOGITS, st.permutations(range(V)), st.integers(1, V - 1))
def test_logit_diff_is_antisymmetric_and_reads_only_its_tokens(logits, order, cut):
    tokens, against = order[:cut][:3], order[cut:][:3]
    logits = torch.tensor(logits)
    got = logit_diff(logits, tokens, against)
    assert got.dtype == torch.float64
    torch.testing.assert_close(logit_diff(logits, against, tokens), -got, atol=1e-12, rtol=0)
    rows = logits.double().tolist()
    expected = [log_sum(row, tokens) - log_sum(row, against) for row in rows]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)
    others = [t for t in range(V) if t not in (*tokens, *against)]
    changed = logits.clone()
    changed[:, others] = 1000.0
    assert torch.equal(logit_diff(changed, tokens, against), got)


def test_logits_that_are_nan_are_called_nan_at_calibration():
    logits = torch.zeros(4, 8)
    logits[1, 3] = float("nan")
    with pytest.raises(
        DialError, match=r"logits are NaN on 1 of 6 HARMFUL and BENIGN prompts.*dtype"
    ):
        calibrated_tokens(None, logits, torch.zeros(2, 8))


def test_logits_that_are_nan_score_nan_in_their_own_row_only():
    logits = torch.zeros(2, V)
    logits[0, 5] = float("nan")
    assert refusal_score(logits, [3]).isnan().tolist() == [True, False]
    assert logit_diff(logits, [5], [3]).isnan().tolist() == [True, False]


# --- which tokens


class Words:
    """A tokenizer of a given size that knows the texts of a few ids."""

    def __init__(self, size, texts):
        self.size, self.texts = size, texts

    def __len__(self):
        return self.size

    def decode(self, ids):
        return self.texts.get(ids[0], "?")


SIZES = {"qwen": 151_936, "llama-3": 128_256, "llama-2": 32_000, "gemma": 256_000, "yi": 64_000}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("space", ["", " "])
def test_a_family_fits_where_its_ids_mean_its_texts(family, space):
    texts = {i: space + text for i, text in FAMILIES[family].items()}
    found = family_tokens(Words(SIZES[family], texts))
    assert found == RefusalTokens(
        tuple(FAMILIES[family]), tuple(FAMILIES[family].values()), f"published for {family}"
    )


def test_the_published_constants_are_those_of_the_reference(shared):
    published = (shared / "design" / "published-results.md").read_text()
    for family, texts in FAMILIES.items():
        for token in texts:
            assert str(token) in published, (family, token)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_fits_a_small_vocabulary_or_other_texts(family):
    texts = FAMILIES[family]
    assert family_tokens(Words(SMALLEST_FAMILY_VOCABULARY - 1, texts)) is None
    others = dict.fromkeys(texts, "No")
    assert family_tokens(Words(SIZES[family], others)) is None


def test_half_of_a_family_is_no_family():
    found = family_tokens(Words(151_936, {40: "I", 2121: "Sure"}))
    assert found is not None
    assert found.source == "published for llama-3"  # 40 alone, not qwen's pair


def test_a_small_byte_level_model_is_not_taken_for_a_published_one():
    assert family_tokens(tiny.tokenizer()) is None


def test_listed_tokens_are_ids_or_the_first_token_of_a_text():
    tokenizer = tiny.tokenizer()
    i, a = (tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "IA")
    found = listed_tokens(tokenizer, ["I cannot", a, "Apologies", i])
    assert found.refusal == (i, a)  # once each, in order
    assert found.refusal_texts == ("I", "A")
    assert found.source == "listed"
    assert found.compliance == ()
    assert listed_tokens(tokenizer, [0]).refusal == (0,)


@pytest.mark.parametrize(
    ("given_tokens", "says"),
    [
        ([], "no refusal tokens: give at least one id or text"),
        ([""], "refusal token '' has no token in this vocabulary"),
        ([-1], "token -1 is not in this vocabulary of 259"),
        ([40, 259], "token 259 is not in this vocabulary of 259"),
    ],
)
def test_a_token_that_cannot_be_listed_is_named(given_tokens, says):
    with pytest.raises(DialError, match=re.escape(says)):
        listed_tokens(tiny.tokenizer(), given_tokens)


# --- calibration


def openings(n, seed, base=1e-6, **chances):
    """Logits of n prompts whose replies open with these characters, this often."""
    tokenizer = tiny.tokenizer()
    p = torch.full((len(tokenizer),), base, dtype=torch.float64)
    for character, chance in chances.items():
        p[tokenizer.encode(character, add_special_tokens=False)[0]] = chance
    noise = 0.05 * torch.randn(n, len(p), generator=torch.Generator().manual_seed(seed))
    return (p.log() + noise).float()


def test_calibration_finds_what_was_planted_most_frequent_first():
    harmful = openings(60, 0, I=0.55, N=0.35, T=0.05, S=0.04)
    benign = openings(60, 1, S=0.6, H=0.3, T=0.05, I=0.02, q=0.005)
    found = calibrated_tokens(tiny.tokenizer(), harmful, benign)
    assert found.refusal_texts == ("I", "N")
    assert found.compliance_texts == ("S", "H")
    assert found.source == "calibrated"
    tokenizer = tiny.tokenizer()
    assert tuple(tokenizer.decode([i]) for i in found.refusal) == found.refusal_texts
    swapped = calibrated_tokens(tiny.tokenizer(), benign, harmful)
    assert (swapped.refusal, swapped.compliance) == (found.compliance, found.refusal)


def test_a_token_needs_both_enough_probability_and_enough_odds():
    harmful = openings(40, 0, I=0.5, a=0.3, b=0.15, c=0.008)
    benign = openings(40, 1, S=0.8, a=0.1, b=0.03)
    found = calibrated_tokens(tiny.tokenizer(), harmful, benign)
    assert found.refusal_texts == ("I", "b")  # a: 3 to 1 only; c: under 1%
    for limits, texts in (
        ({"odds": 2.0}, ("I", "a", "b")),
        ({"least": 0.005}, ("I", "b", "c")),
        ({"least": 0.2}, ("I",)),
    ):
        found = calibrated_tokens(tiny.tokenizer(), harmful, benign, **limits)
        assert found.refusal_texts == texts


def test_calibrated_tokens_separate_the_groups_they_were_read_from():
    harmful, benign = openings(40, 0, I=0.7, S=0.2), openings(40, 1, S=0.8, I=0.1)
    found = calibrated_tokens(tiny.tokenizer(), harmful, benign)
    assert (refusal_score(harmful, found.refusal) > 0).all()
    assert (refusal_score(benign, found.refusal) < 0).all()
    assert (logit_diff(harmful, found.refusal, found.compliance) > 0).all()
    assert (logit_diff(benign, found.refusal, found.compliance) < 0).all()


def test_groups_that_open_alike_raise_with_the_near_miss():
    harmful, benign = openings(40, 0, I=0.5, S=0.4), openings(40, 1, I=0.3, S=0.6)
    with pytest.raises(DialError, match="no refusal tokens could be calibrated") as error:
        calibrated_tokens(tiny.tokenizer(), harmful, benign)
    message = str(error.value)
    assert re.search(r"nearest 'I', 0\.5\d\d against 0\.3\d\d", message), message
    assert message.endswith("with --refusal-tokens replies")


def test_a_model_that_never_complies_still_has_refusal_tokens():
    harmful = openings(40, 0, I=0.9, base=0.1 / 258)
    found = calibrated_tokens(tiny.tokenizer(), harmful, openings(40, 1, I=0.1, base=0.9 / 258))
    assert found.refusal_texts == ("I",)
    assert found.compliance == ()


def test_a_logit_difference_says_which_tokens_it_reads():
    scorer, logits = LogitDiff((3, 1), (4,)), torch.randn(5, 8)
    assert torch.equal(scorer(logits), logit_diff(logits, (3, 1), (4,)))
    assert torch.equal(scorer.read(logits[:, list(scorer.reads)]), scorer(logits))
    unread = logits.clone()
    unread[:, [0, 2, 5, 6, 7]] = float("nan")
    assert torch.equal(scorer(unread), scorer(logits))
