"""A verdict end to end: what passes, what fails and why, every kind of file, what a run leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import verify_case
from script_case import load
from test_control_vectors import gguf

from refusal_dial import directions
from refusal_dial.common import DialError
from refusal_dial.report.verify import print_verification, write_verdict
from refusal_dial.run.folder import read_table, read_verdict
from refusal_dial.studies.verify import load_verification, verification_of
from refusal_dial.studies.verify_claims import by_slope, conduct_verification, judge_claims

PLACE = ["layer", "site", "pos", "alpha"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return verify_case.few_prompts(tmp_path_factory.mktemp("prompts") / "few.jsonl")


@pytest.fixture(scope="module")
def study(embedded, prompts):
    return verify_case.study_at(embedded, prompts)


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    """The four directions whose verdict is known, as files."""
    folder = tmp_path_factory.mktemp("known")
    for name, one in verify_case.known_answers(study).items():
        directions.save(one, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def verify(study, prompts, folder):
    """The verdict on a file, once for each."""
    done = {}

    def call(name):
        if name not in done:
            path = folder / f"{name}.safetensors"
            flags = verify_case.flags_for(prompts, path, out=str(folder / f"run {name}"))
            opened = verification_of(study, directions.load(path), flags)
            done[name] = conduct_verification("verify_direction", opened, flags)
        return done[name]

    return call


def claims(verified):
    return {one["name"]: one for one in verified.verdict["claims"]}


# --- what it must show


def test_the_learned_direction_passes_every_claim(verify):
    verdict = verify("refusal").verdict
    assert verdict["status"] == "pass", verdict["reason"]
    assert {one["status"] for one in verdict["claims"]} == {"pass"}
    assert len(verdict["claims"]) == 9
    assert verdict["direction"]["known"]
    assert not verdict["direction"]["exploratory"]
    edge = verdict["rates"][0]
    assert edge["down"][0] < 0.15 < edge["unsteered"][0] < 0.6 < edge["up"][0]


def test_a_random_direction_fails_as_no_more_than_random_ones(verify):
    verdict, found = verify("random").verdict, claims(verify("random"))
    assert verdict["status"] == "fail"
    for name in ("turns it up", "turns it down"):
        assert found[name]["status"] == "fail"
        assert (
            "not distinguishable from random directions of the same length" in found[name]["reason"]
        )
    assert (
        "not distinguishable from that of random directions"
        in found["is more than its controls"]["reason"]
    )
    assert found["spares BENIGN"]["status"] == "not shown"
    assert "not distinguishable from" in found["spares BENIGN"]["reason"]


def test_a_direction_of_shuffled_labels_fails_as_what_shuffled_labels_teach(verify):
    verdict, found = verify("shuffled").verdict, claims(verify("shuffled"))
    assert verdict["status"] == "fail"
    again = found["is stable"]
    assert again["status"] == "fail"
    assert "no closer to what these prompts teach than to what shuffled labels" in again["reason"]
    beside = found["is more than its controls"]
    assert "what else shuffled labels teach" in beside["reason"]
    assert beside["smallest"] > abs(beside["estimate"]) * 0.9  # printed beside the null result


def test_a_direction_of_prompt_length_fails_as_prompt_length(verify):
    verdict, found = verify("length").verdict, claims(verify("length"))
    assert verdict["status"] == "fail"
    length = found["is not prompt length"]
    assert length["status"] == "fail"
    assert "its effect is explained by prompt length" in length["reason"]
    assert "cosine 1.00" in length["reason"]
    assert "is not prompt length" in verdict["reason"]


@pytest.mark.parametrize("name", ["refusal", "random", "shuffled", "length"])
def test_the_slope_is_shown_of_the_refusal_direction_alone(study, prompts, folder, name):
    path = folder / f"{name}.safetensors"
    flags = verify_case.flags_for(prompts, path)
    opened = verification_of(study, directions.load(path), flags)
    found = judge_claims([by_slope(opened, flags)], 0.05).claims[0]
    assert found.status == ("pass" if name == "refusal" else "not shown")
    labels = "10,000 permuted labels (own length)"
    covariance = "10,000 directions of the activations' covariance (its labels are not at hand)"
    assert (labels if name == "refusal" else covariance) in found.reason
    low, high = found.evidence.interval
    assert low < found.evidence.estimate < high


def test_a_direction_whose_prompts_are_not_known_is_set_beside_the_covariance(
    study, prompts, folder
):
    one = directions.load(folder / "refusal.safetensors")
    unknown = replace(one, provenance=replace(one.provenance, prompt_ids=(), data_hash=""))
    flags = verify_case.flags_for(prompts, folder / "refusal.safetensors")
    (row,) = by_slope(verification_of(study, unknown, flags), flags).details
    assert row["null"] == "covariance"
    turned_round = replace(one, unit=-one.unit)
    other = by_slope(verification_of(study, turned_round, flags), flags)
    claim = judge_claims([other], 0.05).claims[0]
    assert other.estimate < 0
    assert claim.status in ("fail", "not shown")
    assert claim.status == "not shown" or "it turns the other way" in claim.reason


# --- what a verdict is made from


def test_test_prompts_are_ones_the_direction_never_saw(study, prompts, folder, verify):
    path = folder / "refusal.safetensors"
    given = directions.load(path)
    opened = verification_of(study, given, verify_case.flags_for(prompts, path))
    test = {prompt.id for prompt in opened.test}
    assert not test & set(given.provenance.prompt_ids)
    assert {prompt.id for prompt in opened.learn} == set(given.provenance.prompt_ids)
    rows = read_table(verify("refusal").run.folder, "scores")
    assert set(rows["prompt_id"]) <= test


def test_a_direction_that_saw_every_prompt_is_exploratory(study, prompts, folder):
    path = folder / "refusal.safetensors"
    one = directions.load(path)
    edge = tuple(p for p in study.prompts if p.subset == "EDGE")
    about = replace(
        one.provenance,
        prompt_ids=tuple(p.id for p in edge),
        data_hash=verify_case.data_hash(edge),
    )
    opened = verification_of(
        study, replace(one, provenance=about), verify_case.flags_for(prompts, path)
    )
    assert opened.exploratory
    unknown = replace(one, provenance=replace(one.provenance, prompt_ids=(), data_hash=""))
    opened = verification_of(study, unknown, verify_case.flags_for(prompts, path))
    assert not opened.exploratory
    assert not opened.known


def test_controls_have_the_place_and_length_of_the_direction(study, prompts, folder):
    path = folder / "refusal.safetensors"
    given = directions.load(path)
    opened = verification_of(study, given, verify_case.flags_for(prompts, path, n_random=5))
    assert [one.kind for one in opened.controls] == ["random"] * 5 + ["covariance"] * 5 + [
        "shuffled"
    ] * 5
    for one in opened.controls:
        assert float(one.direction.unit.norm()) == pytest.approx(1, abs=1e-5)
        assert one.direction.norm == given.norm
        if one.kind != "random":  # what is left beside the direction
            assert abs(float(one.direction.unit @ given.unit)) < 1e-5
    assert opened.alpha == pytest.approx(0.3 * study.residual_norm(20), rel=1e-3)


# --- what a run leaves


def test_a_finished_run_is_read_and_leaves_the_same_page(
    study, prompts, folder, verify, monkeypatch
):
    run = verify("refusal").run
    page = write_verdict(run.folder).read_bytes()
    monkeypatch.setattr("refusal_dial.run.job.append", lambda *_: pytest.fail("computed again"))
    path = folder / "refusal.safetensors"
    flags = verify_case.flags_for(prompts, path, out=str(run.folder))
    again = conduct_verification(
        "verify_direction", verification_of(study, directions.load(path), flags), flags
    )
    assert dict(again.verdict) == dict(verify("refusal").verdict) == read_verdict(run.folder)
    assert write_verdict(run.folder).read_bytes() == page
    table = read_table(run.folder, "summary")
    assert list(table["status"]) == [one["status"] for one in again.verdict["claims"]]
    saved = directions.load(run.folder / "direction.safetensors")
    assert torch.equal(saved.unit, directions.load(path).unit)


def test_the_terminal_says_each_claim_its_reason_and_what_is_not_shown(verify, capsys):
    print_verification(verify("random").verdict)
    printed = " ".join(capsys.readouterr().out.split())
    assert "verdict: FAIL: turns it up: +alpha moves the score by" in printed
    assert "What is not shown:" in printed
    assert "smallest swing to stand out" in printed
    assert "Any other layer, site, position or strength than layer 20" in printed


# --- files of other tools, through the script


@pytest.mark.parametrize("suffix", ["pt", "gguf"])
def test_other_tools_files_go_through_the_script(suffix, qwen_folder, tmp_path, capsys):
    path, vector = tmp_path / f"<b>x.{suffix}", torch.arange(32.0) - 7
    if suffix == "pt":
        torch.save(vector, path)
    else:
        path.write_bytes(gguf({"direction.1": vector.tolist(), "direction.2": [0.5] * 32}))
    module = load("verify_direction")
    flags = module.VerifyFlags(
        direction=str(path),
        model=str(qwen_folder),
        prompts=str(verify_case.tiny_prompts(tmp_path)),
        refusal_tokens="I",
        device="cpu",
        n_random=3,
        n_permutations=19,
        n_replies=3,
        max_new_tokens=2,
        out=str(tmp_path / "run"),
    )
    with pytest.raises(DialError, match="--layer"):
        module.main(flags)
    module.main(replace(flags, layer=1))
    assert "verdict: " in capsys.readouterr().out
    verdict = read_verdict(tmp_path / "run")
    assert verdict["status"] in ("fail", "not shown")
    assert verdict["direction"]["site"] == ("resid_pre" if suffix == "pt" else "resid_post")
    assert verdict["direction"]["norm"] == pytest.approx(float(vector.norm()), rel=1e-5)
    assert "does not say which prompts the direction was learned from" in " ".join(
        verdict["not_shown"]
    )
    page = (tmp_path / "run" / "verdict.html").read_text()
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page


def test_a_direction_of_another_width_is_refused(study, prompts, tmp_path):
    path = tmp_path / "d.pt"
    torch.save(torch.ones(7), path)
    flags = verify_case.flags_for(prompts, path, layer=20)
    with pytest.raises(DialError, match=r"the direction is 7 wide .* stream is \d+"):
        verification_of(
            study,
            directions.from_vector(torch.ones(7), directions.Provenance(20, "resid_pre", -1)),
            flags,
        )


def test_too_few_prompts_to_test_on_are_refused(embedded, folder, tmp_path):
    prompts = verify_case.few_prompts(tmp_path / "few.jsonl", edge=13)
    path = folder / "random.safetensors"
    flags = verify_case.flags_for(prompts, path, reference="scores")
    with pytest.raises(DialError, match=r"at least 8 prompts to test on, not \d: more prompts"):
        verification_of(verify_case.study_at(embedded, prompts), directions.load(path), flags)


def test_what_is_missing_is_said_before_the_model_loads(prompts, monkeypatch):
    monkeypatch.setattr("refusal_dial.studies.base.load_model", lambda *_: pytest.fail("loaded"))
    flags = verify_case.flags_for(prompts, "gone.pt")
    with pytest.raises(DialError, match="no direction file"):
        load_verification(flags)
