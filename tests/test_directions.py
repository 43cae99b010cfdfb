"""A planted direction is found, with its sign and length, and survives the disk exactly."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from unchecked import unchecked

from refusal_dial.common import DialError
from refusal_dial.directions.learning import (
    FORMAT,
    Direction,
    Provenance,
    as_text,
    caa,
    from_vector,
    load,
    mean_diff,
    pca,
    probe,
    save,
    top_bottom,
)
from refusal_dial.hooks import unit_of

LAW = settings(deadline=None, derandomize=True, max_examples=30)
WHERE = Provenance(layer=20, site="resid_pre", pos=-1)
D = 64


def gaussian(n, seed, d=D):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def planted(seed=0):
    vector = gaussian(1, 1000 + seed)[0]
    return vector / vector.norm()


def groups(n, strength, seed=0):
    """Two groups of Gaussian activations, `strength` apart along the planted direction."""
    shift = strength * planted(seed)
    return gaussian(n, 2 * seed) + shift, gaussian(n, 2 * seed + 1)


def cosine(direction, vector):
    return float(direction.unit @ vector / vector.norm())


# --- finding


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_direction_is_found_the_better_the_more_there_is_to_see(seed):
    found = [cosine(mean_diff(*groups(n, 2.0, seed), WHERE), planted(seed)) for n in (4, 32, 512)]
    assert found == sorted(found)
    assert found[-1] > 0.95
    # what is expected of the mean of n Gaussians in d dimensions: s / sqrt(s^2 + 2 d / n)
    assert found[-1] == pytest.approx(2.0 / (4.0 + 2 * D / 512) ** 0.5, abs=0.02)


def test_its_norm_is_the_distance_between_the_groups():
    assert mean_diff(*groups(20_000, 3.0), WHERE).norm == pytest.approx(3.0, abs=0.05)


def test_the_sign_is_positive_minus_negative():
    positive, negative = groups(64, 4.0)
    one, other = mean_diff(positive, negative, WHERE), mean_diff(negative, positive, WHERE)
    assert cosine(one, planted()) > 0.9
    torch.testing.assert_close(one.unit, -other.unit)
    assert one.norm == other.norm


@LAW
@given(n=st.integers(1, 9), m=st.integers(1, 9), seed=st.integers(0, 99), half=st.booleans())
def test_it_is_the_difference_of_the_means_in_double_precision(n, m, seed, half):
    positive, negative = gaussian(n, seed), 3 * gaussian(m, seed + 1) + 1
    if half:
        positive, negative = positive.half(), negative.half()
    raw = positive.double().mean(0) - negative.double().mean(0)
    direction = mean_diff(positive, negative, WHERE)
    assert direction.unit.dtype == torch.float32
    assert float(direction.unit.double().norm()) == pytest.approx(1.0, abs=1e-6)
    assert direction.norm == pytest.approx(float(raw.norm()), rel=1e-5)
    torch.testing.assert_close(direction.unit.double() * direction.norm, raw, atol=1e-5, rtol=1e-4)


@LAW
@given(scale=st.sampled_from([1e-30, 1e-10, 1.0, 1e10, 1e30]), seed=st.integers(0, 99))
def test_the_unit_vector_is_one_at_every_scale(scale, seed):
    vector = gaussian(1, seed)[0]
    direction = from_vector(vector * scale, WHERE)
    assert float(unit_of(direction).norm()) == pytest.approx(1.0, abs=1e-6)
    assert direction.norm == pytest.approx(float(vector.double().norm()) * scale, rel=1e-5)
    torch.testing.assert_close(direction.unit, from_vector(vector, WHERE).unit)


def test_what_both_groups_share_does_not_matter():
    positive, negative = groups(64, 2.0)
    offset = 10 * gaussian(1, 7)
    moved = mean_diff(positive + offset, negative + offset, WHERE)
    assert cosine(moved, mean_diff(positive, negative, WHERE).unit) > 0.9999


def test_top_and_bottom_are_learned_from_the_scores_alone():
    activations = gaussian(300, 3)
    scores = (activations @ planted()).tolist()
    direction = top_bottom(activations, scores, WHERE)
    assert cosine(direction, planted()) > 0.8
    reverse = top_bottom(activations, [-s for s in scores], WHERE)
    torch.testing.assert_close(reverse.unit, -direction.unit)


def test_k_is_a_third_unless_it_is_given():
    activations = gaussian(10, 0)
    scores = [float(i) for i in range(10)]
    third = activations[7:].mean(0) - activations[:3].mean(0)
    pair = activations[9] - activations[0]
    torch.testing.assert_close(top_bottom(activations, scores, WHERE).unit, third / third.norm())
    one = top_bottom(activations, scores, WHERE, k=1)
    torch.testing.assert_close(one.unit, pair / pair.norm())
    assert top_bottom(activations[:2], scores[:2], WHERE).norm == pytest.approx(
        float((activations[1] - activations[0]).norm()), rel=1e-5
    )


def test_a_balanced_direction_is_not_the_category_that_decides_the_score():
    n, category_axis, true_axis = 200, torch.eye(D)[0], torch.eye(D)[1]
    activations = gaussian(2 * n, 5)
    activations[:n] += 5 * category_axis
    names = ["loud"] * n + ["quiet"] * n
    scores = (activations @ true_axis + 2 * (activations @ category_axis)).tolist()
    plain = top_bottom(activations, scores, WHERE)
    balanced = top_bottom(activations, scores, WHERE, categories=names)
    assert cosine(plain, category_axis) > 0.9
    assert cosine(balanced, true_axis) > 0.3
    shift = balanced.unit[0] * balanced.norm
    assert shift < 2.5  # within a category the axis varies by 1, not by the 5 between them
    assert plain.provenance.method == "top_bottom"
    assert balanced.provenance.method == "top_bottom_balanced"


def test_balanced_top_and_bottom_differ_by_nothing_where_only_the_category_does():
    offsets = {"a": 0.0, "b": 10.0, "c": -20.0}
    names = [name for name in offsets for _ in range(4)]
    within = torch.tensor([-1.0, -0.5, 0.5, 1.0]).repeat(3)
    activations = torch.zeros(12, 2)
    activations[:, 0] = torch.tensor([offsets[name] for name in names])
    activations[:, 1] = within
    scores = (activations.sum(1)).tolist()
    direction = top_bottom(activations, scores, WHERE, k=3, categories=names)
    torch.testing.assert_close(direction.unit, torch.tensor([0.0, 1.0]))
    assert direction.norm == pytest.approx(2.0)


def test_the_provenance_is_kept_and_the_method_added():
    where = replace(WHERE, model="m", revision="r", seed=3, prompt_ids=("a",), data_hash="h")
    direction = mean_diff(*groups(4, 1.0), where)
    assert direction.provenance == replace(where, method="mean_diff")


# --- the whole family

FAMILY = {"mean_diff": mean_diff, "caa": caa, "pca": pca, "probe": probe}


@pytest.mark.parametrize("name", FAMILY)
def test_every_extractor_finds_the_planted_direction_with_its_sign_and_name(name):
    positive, negative = groups(400, 3.0)
    found = FAMILY[name](positive, negative, WHERE)
    assert cosine(found, planted()) > 0.9
    assert found.norm == pytest.approx(3.0, abs=0.4)  # how far apart the groups stand along it
    assert found.provenance == replace(WHERE, method=name)
    opposite = FAMILY[name](negative, positive, WHERE)
    assert cosine(opposite, found.unit) == pytest.approx(-1.0, abs=1e-3)
    assert opposite.norm == pytest.approx(found.norm, rel=1e-3)


@pytest.mark.parametrize("name", FAMILY)
def test_no_extractor_prefers_an_axis_a_scale_or_an_origin(name):
    positive, negative = groups(60, 2.0)
    rotation = torch.linalg.qr(gaussian(D, 8).double()).Q.float()
    found = FAMILY[name](positive, negative, WHERE)
    turned = FAMILY[name](positive @ rotation, negative @ rotation, WHERE)
    assert cosine(turned, found.unit @ rotation) > 0.999
    moved = FAMILY[name](7 * positive + 3, 7 * negative + 3, WHERE)
    assert cosine(moved, found.unit) > 0.999
    assert moved.norm == pytest.approx(7 * found.norm, rel=1e-2)


@pytest.mark.parametrize("name", FAMILY)
def test_no_extractor_finds_a_direction_that_is_not_there(name):
    found = FAMILY[name](gaussian(100, 40), gaussian(100, 41), WHERE)
    assert abs(cosine(found, planted())) < 4 / D**0.5


def test_caa_is_the_mean_difference_of_its_pairs():
    positive, negative = groups(9, 1.0)
    one, other = caa(positive, negative, WHERE), mean_diff(positive, negative, WHERE)
    torch.testing.assert_close(one.unit, other.unit)
    assert one.norm == pytest.approx(other.norm, rel=1e-5)


def test_pairs_cancel_what_each_pair_shares_where_it_hides_the_direction_from_a_probe():
    own = 30 * gaussian(50, 12)  # what a pair is about, far larger than what is asked for
    positive, negative = own + 2 * planted(), own + 0.02 * gaussian(50, 13)
    assert cosine(pca(positive, negative, WHERE), planted()) > 0.99
    assert cosine(caa(positive, negative, WHERE), planted()) > 0.99


def test_pca_is_the_longest_axis_of_the_differences_and_not_their_mean():
    differences = torch.zeros(4, 3)
    differences[:, 0] = torch.tensor([5.0, -5.0, 5.0, -4.0])
    differences[:, 1] = 1.0
    found = pca(differences, torch.zeros(4, 3), WHERE)
    assert found.unit[0] > 0.99
    assert found.norm == pytest.approx(0.25, abs=0.1)  # 1/4 along the axis on average
    assert mean_diff(differences, torch.zeros(4, 3), WHERE).unit[1] > 0.9


def test_a_probe_sees_past_noise_that_the_means_follow():
    noise = torch.ones(D)
    noise[0] = 50.0  # one loud axis, the same in both groups
    positive, negative = gaussian(80, 1) * noise, gaussian(80, 2) * noise
    positive[:, 1] += 4.0
    axis = torch.eye(D)[1]
    assert cosine(mean_diff(positive, negative, WHERE), axis) < 0.7
    assert cosine(probe(positive, negative, WHERE, l2=0.01), axis) > 0.85


def test_a_probe_weighs_groups_equally_however_many_are_in_each():
    positive, negative = groups(40, 2.0)
    often = torch.cat([negative] * 5)
    one, other = probe(positive, negative, WHERE), probe(positive, often, WHERE)
    assert cosine(one, other.unit) > 0.98


# --- errors


@pytest.mark.parametrize("pair", [caa, pca])
@pytest.mark.parametrize(("n", "m"), [(2, 3), (0, 0), (1, 0)])
def test_pairs_are_as_many_of_each(pair, n, m):
    with pytest.raises(DialError, match=f"pairs of {n} and {m} activations: there must be as many"):
        pair(torch.zeros(n, 4), torch.zeros(m, 4), WHERE)


def test_a_probe_says_what_it_cannot_use():
    with pytest.raises(DialError, match="a probe of 0 and 2 activations"):
        probe(torch.zeros(0, 4), torch.zeros(2, 4), WHERE)
    with pytest.raises(DialError, match="l2 must be over 0, not 0"):
        probe(*groups(4, 1.0), WHERE, l2=0.0)
    with pytest.raises(DialError, match="NaN or infinite"):
        probe(torch.full((2, 4), float("nan")), torch.zeros(2, 4), WHERE)
    with pytest.raises(DialError, match="probe direction is zero: the two groups do not differ"):
        probe(torch.ones(2, 4), torch.ones(2, 4), WHERE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_vector_that_is_not_finite_is_refused(bad):
    vector = torch.ones(4)
    vector[2] = bad
    with pytest.raises(DialError, match="the mean_diff direction holds NaN or infinite values"):
        from_vector(vector, replace(WHERE, method="mean_diff"))
    with pytest.raises(DialError, match="mean_diff direction holds NaN or infinite"):
        mean_diff(vector[None], torch.zeros(1, 4), WHERE)


def test_groups_that_do_not_differ_have_no_direction():
    same = gaussian(5, 0)
    with pytest.raises(DialError, match="direction is zero: the two groups do not differ"):
        mean_diff(same, same.clone(), WHERE)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_an_empty_group_is_named(n, m):
    with pytest.raises(DialError, match=f"mean difference of {n} and {m} activations"):
        mean_diff(torch.zeros(n, 4), torch.zeros(m, 4), WHERE)


def test_too_many_extremes_name_the_valid_k():
    with pytest.raises(DialError, match="k must be from 1 to 2"):
        top_bottom(gaussian(5, 0), [1.0, 2.0, 3.0, 4.0, 5.0], WHERE, k=3)
    with pytest.raises(DialError, match="take at least 2 prompts to learn from, not 1: give more"):
        top_bottom(gaussian(1, 0), [1.0], WHERE)


# --- on disk


FULL = Provenance(
    layer=12,
    site="resid_post",
    pos=-2,
    method="top_bottom",
    model="some/model",
    revision="abc",
    seed=7,
    prompt_ids=("0001", "é", 'q"uote'),
    data_hash="0123456789abcdef",
)


@pytest.mark.parametrize("provenance", [WHERE, FULL])
@pytest.mark.parametrize("norm", [1.0, 0.1 + 0.2, 1e-300, 12345.678901234567])
def test_a_direction_comes_back_exactly_with_its_history(provenance, norm, tmp_path):
    direction = Direction(planted(), norm, provenance)
    save(direction, tmp_path / "d.safetensors")
    back = load(str(tmp_path / "d.safetensors"))
    assert torch.equal(back.unit, direction.unit)
    assert back.norm == norm
    assert back.provenance == provenance
    assert {f.name for f in fields(Provenance)} == set(vars(back.provenance))


def test_the_same_direction_has_the_same_bytes(tmp_path):
    for i in range(9):
        save(Direction(planted(), 2.0, FULL), tmp_path / str(i))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert FORMAT.encode() in (tmp_path / "0").read_bytes()


def test_any_bit_that_changed_since_is_found(tmp_path):
    """In the vector, in what is recorded of it, or in the header; an older file has no digest."""
    path = tmp_path / "d.safetensors"
    save(Direction(planted(), 2.0, FULL), path)
    data, whole = path.read_bytes(), load(path)
    assert b"digest" in data
    for at in range(0, len(data), 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            found = load(path)
        except DialError:
            continue
        assert torch.equal(found.unit, whole.unit)
        assert (found.norm, found.provenance) == (whole.norm, whole.provenance)
    for changes in ({"layer": 3}, {"norm": 3.0}, {"model": "other/model"}, {"digest": "0" * 32}):
        recorded = json.loads(as_text(whole.norm, whole.provenance, b"")) | changes
        save_file({"unit": whole.unit}, path, {"direction": json.dumps(recorded)})
        with pytest.raises(DialError, match="was altered since it was written: learn the direct"):
            load(path)
    del recorded["digest"]
    save_file({"unit": whole.unit}, path, {"direction": json.dumps(recorded)})
    assert load(path).norm == 2.0


def test_a_direction_too_long_to_be_saved_is_refused():
    for vector in (torch.full((4,), 3e38), torch.full((4,), 1e300, dtype=torch.float64)):
        with pytest.raises(DialError, match=r"the caa direction is .* long: expected under 1e36"):
            from_vector(vector, replace(WHERE, method="caa"))


def test_a_column_of_a_matrix_is_saved_as_itself(tmp_path):
    column = torch.eye(4)[:, 1]
    save(Direction(column, 1.0), tmp_path / "d.safetensors")
    assert torch.equal(load(tmp_path / "d.safetensors").unit, column)


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "d.safetensors"
    save(Direction(planted(), 1.0), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(Direction(planted(1), 2.0), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_says_what_was_expected(tmp_path):
    with pytest.raises(DialError, match=r"no direction file '.*gone': expected a \.safetensors"):
        load(tmp_path / "gone")
    with pytest.raises(DialError, match="no direction file"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", None])
def test_a_file_that_is_no_safetensors_is_named(content, tmp_path):
    path = tmp_path / "d.safetensors"
    save(Direction(planted(), 1.0), path)
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    with pytest.raises(DialError, match=r"d\.safetensors is not a direction file: ") as error:
        load(path)
    assert "\n" not in str(error.value)


GOOD = {"format": FORMAT, "norm": 1.0, "layer": 1, "site": "resid_pre", "pos": -1, "prompt_ids": []}


def about(**changes):
    kept = {k: v for k, v in {**GOOD, **changes}.items() if v != "absent"}
    return {"direction": json.dumps(kept)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        ({"unit": torch.ones(4) / 2}, None, "holds no direction"),
        ({"unit": torch.ones(4) / 2}, {"format": FORMAT}, "holds no direction"),
        ({"other": torch.ones(4)}, about(), "holds no direction"),
        ({"unit": torch.ones(2, 4)}, about(), "holds no direction"),
        ({"unit": torch.ones(4, dtype=torch.int64)}, about(), "holds no direction"),
        ({"unit": torch.ones(4) / 2}, {"direction": "{not json"}, "is not a direction file"),
        ({"unit": torch.ones(4) / 2}, {"direction": "[1]"}, "metadata of another version"),
        ({"unit": torch.ones(4) / 2}, {"direction": "7"}, "metadata of another version"),
        (
            {"unit": torch.ones(4) / 2},
            about(format="absent"),
            f"another version: expected {FORMAT!r}",
        ),
        (
            {"unit": torch.ones(4) / 2},
            about(format="direction 2"),
            f"another version: expected {FORMAT!r}",
        ),
        ({"unit": torch.ones(4) / 2}, about(norm="absent"), "another version: 'norm'"),
        (
            {"unit": torch.ones(4) / 2},
            about(norm="long"),
            "'norm' of its metadata must be a finite",
        ),
        ({"unit": torch.ones(4) / 2}, about(norm=float("nan")), "must be a finite number"),
        ({"unit": torch.ones(4) / 2}, about(norm=-1), "must be a finite number from 0 up, not -1"),
        ({"unit": torch.ones(4) / 2}, about(norm="1e999"), "must be a finite number"),
        (
            {"unit": torch.ones(4) / 2},
            about(layer="one"),
            "'layer' of its metadata must be a whole",
        ),
        ({"unit": torch.ones(4) / 2}, about(layer=[1]), "a whole number from 0 up, not [1]"),
        ({"unit": torch.ones(4) / 2}, about(layer=None), "a whole number from 0 up, not None"),
        ({"unit": torch.ones(4) / 2}, about(layer=True), "a whole number from 0 up, not True"),
        (
            {"unit": torch.ones(4) / 2},
            about(pos="x"),
            "'pos' of its metadata must be a whole number",
        ),
        ({"unit": torch.ones(4) / 2}, about(site="nowhere"), "must be one of resid_pre, resid_mid"),
        ({"unit": torch.ones(4) / 2}, about(site=["z"]), "must be one of resid_pre, resid_mid"),
        (
            {"unit": torch.ones(4) / 2},
            about(prompt_ids=[[1]]),
            "must be a list of texts, not [[1]]",
        ),
        ({"unit": torch.ones(4) / 2}, about(pool=0), "must be a whole number from 1 up, not 0"),
        ({"unit": torch.ones(4) / 2}, about(seed="a"), "must be a whole number or null, not 'a'"),
        (
            {"unit": torch.ones(4) / 2},
            about(model=3),
            "'model' of its metadata must be text, not 3",
        ),
        ({"unit": torch.ones(4) / 2}, {"direction": "[" * 10**5}, "is not a direction file"),
        ({"unit": torch.ones(4) / 2}, {"direction": '{"layer":' + "9" * 5000}, "not a direction"),
        ({"unit": torch.ones(4) * float("nan")}, about(), "holds NaN or infinite values"),
        ({"unit": torch.zeros(4).half()}, about(), "a vector of norm 0"),
        ({"unit": torch.ones(4) / 2}, about(prompt_ids="absent"), "another version: 'prompt_ids'"),
        ({"unit": torch.ones(4) / 2}, about(layer="absent"), "another version"),
        ({"unit": torch.ones(4) / 2}, about(mood="new"), "another version"),
        (
            {"unit": torch.ones(4) * 2.5},
            about(),
            "a vector of norm 5: expected 1",
        ),
        ({"unit": torch.ones(4).half() * 2.5}, about(), "a vector of norm 5: expected 1"),
    ],
)
def test_a_safetensors_file_of_something_else_is_named(tensors, metadata, says, tmp_path):
    path = tmp_path / "d.safetensors"
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(DialError) as error:
        load(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)
    save_file({"unit": torch.ones(4) / 2}, path, metadata=about())
    assert load(path).norm == 1.0


@pytest.mark.parametrize("extractor", ["mean_diff", "caa", "pca", "probe"])
@pytest.mark.parametrize("shapes", [((2, 4), (2, 3)), ((2, 1), (2, 4)), ((4,), (4,))])
def test_groups_of_unequal_width_are_named(extractor, shapes):
    a, b = shapes
    one, other = torch.randn(a), torch.randn(b)
    with pytest.raises(DialError) as error:
        getattr(unchecked("directions/learning"), extractor)(
            one, other, Provenance(0, "resid_pre", -1)
        )
    assert f"activations of shapes {a} and {b}: expected a row a prompt" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_vector_of_other_numbers_is_read_as_float32_of_unit_length(dtype, tmp_path):
    unit = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = unit / unit.norm()
    save_file({"unit": unit.to(dtype)}, tmp_path / "d.safetensors", metadata=about())
    read = load(tmp_path / "d.safetensors").unit
    assert read.dtype == torch.float32
    assert abs(float(read.norm()) - 1) < 1e-6
    assert float(read.double() @ unit) > 0.9999
