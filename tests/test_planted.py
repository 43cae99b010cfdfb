"""Where the answer is known: extraction, selection and patching each find what was planted, as well
as theory says they can, and find nothing where nothing was."""

from __future__ import annotations

from functools import partial
from math import sqrt

import numpy as np
import planted
import pytest
import torch
from scipy.stats import kstest, norm

from refusal_dial.cli.flags import PatchingFlags, SelectionFlags
from refusal_dial.directions.learning import Provenance, caa, mean_diff, pca, probe, top_bottom
from refusal_dial.engine.slopes import mean_gradients
from refusal_dial.model.activations import collect, collect_positions
from refusal_dial.stats.p_values import contrast_weights, slope_test
from refusal_dial.studies.base import load_study
from refusal_dial.studies.patching import conduct_patching, lay_out
from refusal_dial.studies.selection import conduct_selection

WHERE = Provenance(layer=0, site="resid_pre", pos=-1)

# --- activations: cosine to the planted direction against sample size, beside the theory

D, SNR = 128, 1.5  # |mu| / sigma, mu the distance between the groups
SIZES = (8, 32, 128, 512)


def mean_theory(n):
    """cos = 1 / sqrt(1 + (d - 1) sigma^2 (1/n1 + 1/n0) / |mu|^2): the noise of a mean of n in the
    d - 1 dimensions across mu, both groups of n."""
    return 1 / sqrt(1 + (D - 1) * 2 / n / SNR**2)


def pca_theory(n):
    """cos^2 = (1 - c/t^4) / (1 + c/t^2), t^2 = |mu|^2 / 2 sigma^2, c = d/n, and 0 where t^4 < c:
    the top eigenvector of a spiked covariance (Johnstone and Lu 2009; Paul 2007)."""
    t2, c = SNR**2 / 2, D / n
    return sqrt(max(0.0, 1 - c / t2**2) / (1 + c / t2))


def top_bottom_theory(n):
    """cos = 1 / sqrt(1 + (d - 1) (2/k) / 4 m^2), m = phi(q) / (1/3), q = Phi^-1(2/3): the mean of
    the top third of a Gaussian is m, and k = 2n/3 of 2n prompts are in each third."""
    k, m = 2 * n / 3, 3 * norm.pdf(norm.ppf(2 / 3))
    return 1 / sqrt(1 + (D - 1) * (2 / k) / (2 * m) ** 2)


def drawn(n, seed):
    generator = torch.Generator().manual_seed(seed)
    r = torch.randn(D, generator=generator)
    r /= r.norm()
    return r, torch.randn(n, D, generator=generator), torch.randn(n, D, generator=generator)


def cosine(method, n, seed):
    r, one, other = drawn(n, seed)
    if method is top_bottom:
        both = torch.cat([one, other])
        return float(top_bottom(both, (both @ r).tolist(), WHERE).unit @ r)
    return float(method(one + SNR * r, other, WHERE).unit @ r)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(
    ("method", "theory"),
    [
        (mean_diff, mean_theory),
        (caa, mean_theory),
        (partial(probe, l2=100.0), mean_theory),
        (top_bottom, top_bottom_theory),
    ],
)
def test_each_extractor_comes_as_near_as_theory_says(method, theory, n):
    found = torch.tensor([cosine(method, n, seed) for seed in range(12)])
    error = 3 * float(found.std()) / sqrt(12) + 0.01
    assert float(found.mean()) == pytest.approx(theory(n), abs=error)


@pytest.mark.parametrize("n", [128, 512])
def test_pca_of_the_differences_is_never_nearer_than_their_mean_and_follows_its_own_theory(n):
    found = torch.tensor([cosine(pca, n, seed) for seed in range(6)])
    error = 3 * float(found.std()) / sqrt(6) + 0.03  # the theory is a limit of large d and n
    assert float(found.abs().mean()) == pytest.approx(pca_theory(n), abs=error)
    assert pca_theory(n) < mean_theory(n)


def test_below_its_threshold_pca_finds_nothing_where_the_mean_still_does():
    assert pca_theory(64) == 0.0
    found = [abs(cosine(pca, 64, seed)) for seed in range(6)]
    assert sum(found) / 6 < 0.45 < mean_theory(64) - 0.1


def test_no_extractor_beats_the_mean_where_noise_is_the_same_in_all_directions():
    for method in (probe, pca):
        better = [cosine(method, 32, seed) - cosine(mean_diff, 32, seed) for seed in range(12)]
        assert sum(better) / 12 < 0.005


# --- a model whose refusal one head, or one neuron, writes


@pytest.fixture(scope="module", params=["head", "neuron"])
def plant(request, tmp_path_factory):
    """(writer, study, r, flags as a dict)"""
    place = tmp_path_factory.mktemp(request.param)
    folder, r = planted.model_folder(place / "model", request.param)
    prompts = planted.prompts_file(place / "prompts.jsonl")
    flags = {"model": str(folder), "prompts": str(prompts), "refusal_tokens": "I"}
    flags |= {"device": "cpu", "dtype": "float32"}
    return request.param, load_study(PatchingFlags(**flags)), r, flags


def written(writer):
    """The layer whose output is the first to hold r."""
    return planted.LAYER if writer == "head" else planted.LAYER + 1


def test_the_planted_model_refuses_what_is_harmful_and_nothing_else(plant):
    _, study, _, _ = plant
    for score, prompt in zip(study.scores, study.prompts, strict=True):
        assert (score > 0) == (prompt.subset == "HARMFUL"), prompt


def test_extraction_finds_the_direction_after_the_layer_that_writes_it_and_not_before(plant):
    writer, study, r, _ = plant
    harmful = [p.subset == "HARMFUL" for p in study.prompts]
    layers = range(planted.N_LAYERS)
    seen, _ = collect(study.model, study.tokens, layers)
    seen = seen.reshape(planted.N_LAYERS, len(harmful), -1)
    rows = torch.tensor(harmful)
    for method in (mean_diff, caa, pca, probe):
        for layer in layers:
            if layer == 0:
                continue  # the template's own token, the same for all
            one, other = seen[layer][rows], seen[layer][~rows]
            near = abs(float(method(one, other, WHERE).unit @ r))
            assert (near > 0.98) if layer > written(writer) else (near < 0.2), (method, layer)


def test_patching_finds_the_layer_and_the_head_or_neuron(plant, tmp_path):
    writer, study, _, flags = plant
    site, layers = ("z", None) if writer == "head" else ("mlp_post", (written(writer),))
    some = PatchingFlags(**flags, n_pairs=2, out=str(tmp_path / "parts"))
    layout = partial(lay_out, sites=(site,), layers=layers or tuple(range(planted.N_LAYERS)))
    _, summary = conduct_patching("patch_sites", study, some, layout)
    patches = summary[(summary["direction"] == "patch") & (summary["role"] == "last")]
    patches = patches if len(patches) else summary[summary["direction"] == "patch"]
    best = patches.loc[patches["effect_mean"].idxmax()]
    part = "head" if writer == "head" else "neuron"
    want = planted.HEAD if writer == "head" else planted.NEURON
    assert (int(best["layer"]), int(best[part])) == (written(writer), want)
    others = patches.drop(best.name)["effect_mean"].abs()
    assert best["effect_mean"] > 0.9 > 0.1 > others.max()


def test_selection_finds_the_layer_and_the_direction(plant, tmp_path):
    writer, study, r, flags = plant
    if writer == "neuron":
        pytest.skip("the marker before the neuron steers as well as what the neuron writes")
    for rule in ("refusal", "cosmic"):
        sizes = {"n_train": 8, "n_val": 3, "n_test": 4, "positions": (-1,)}
        some = SelectionFlags(**flags, **sizes, rule=rule, out=str(tmp_path / rule))
        found = conduct_selection("select_direction", study, some)
        assert abs(float(found.direction.unit @ r)) > 0.98, rule
        if rule == "refusal":
            kept = found.ranked[found.ranked["dropped"] == ""]
            assert set(kept["layer"]) == {planted.LAYER + 1}  # of 0 to 3, the one that can hold r
        test = found.report["test"]
        assert test["bypass"]["base"] > 0 > test["bypass"]["changed"]
        assert test["induce"]["base"] < 0 < test["induce"]["changed"]
        assert test["kl"]["changed"] < 0.1


# --- the slope, place by place: it starts where what was planted writes, and at the last position


@pytest.fixture(scope="module")
def slope_places(plant):
    """(projections, Gram matrices, places, labels): directions of half of the pairs, gradients of
    the other half, at every layer of the last two positions."""
    _, study, _, _ = plant
    pair = [int(prompt.id.removeprefix(prompt.subset)) for prompt in study.prompts]
    train = [i for i, number in enumerate(pair) if number % 2 == 0]
    held_out = [i for i, number in enumerate(pair) if number % 2]
    harmful = [i for i, row in enumerate(train) if study.prompts[row].subset == "HARMFUL"]
    harmless = [i for i, row in enumerate(train) if study.prompts[row].subset == "BENIGN"]
    layers, pos = range(planted.N_LAYERS), (-1, -2)
    keys = [("resid_pre", layer) for layer in layers]
    gradient = mean_gradients(study.model, study.tokens.chosen(held_out), study.scorer, keys, pos)
    seen, _ = collect_positions(study.model, study.tokens.chosen(train), layers, pos)
    seen = seen.double()
    places = [(where, layer) for where in range(len(pos)) for layer in layers]
    projections = [
        (seen[i, layer] @ gradient["resid_pre", layer][i]).numpy() for i, layer in places
    ]
    grams = [(seen[i, layer] @ seen[i, layer].T).numpy() for i, layer in places]
    labels = contrast_weights(len(train), harmful, harmless)
    return np.stack(projections), np.stack(grams), [(pos[i], layer) for i, layer in places], labels


def test_slopes_start_at_the_layer_and_position_that_were_planted(plant, slope_places):
    projections, grams, places, labels = slope_places
    first = planted.LAYER + 1 if plant[0] == "head" else planted.LAYER + 2
    table = slope_test(projections, grams, labels, n=999)
    for (pos, layer), (_, row) in zip(places, table.iterrows(), strict=True):
        assert np.isnan(row["p"]) == np.isnan(row["p_unit"])
        if pos == -1 and layer >= first:
            assert row["slope"] > 10
            assert row["p"] == row["p_corrected"] == 0.001
        else:
            assert abs(row["slope"]) < 0.2
            assert np.isnan(row["p"]) or row["p"] > 0.01


def test_permuted_labels_have_no_slope_anywhere(slope_places):
    projections, grams, _, labels = slope_places
    smallest = [
        slope_test(
            projections, grams, np.random.default_rng(seed).permutation(labels), n=199, seed=seed
        )["p_corrected"].min()
        for seed in range(40)
    ]
    assert kstest(smallest, "uniform").pvalue > 0.01
