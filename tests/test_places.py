"""Where to patch: the layout of places, and sites that an architecture lacks."""

from __future__ import annotations

import pairs_case
import pytest
import tiny

from refusal_dial.common import DialError
from refusal_dial.studies.pairs import Pairs
from refusal_dial.studies.patching import (
    LAST_ROLE,
    Patching,
    by_role,
    describe,
    last_k,
    lay_out,
    patched,
    sites_of,
)


@pytest.fixture(scope="module")
def pairs(qwen) -> Pairs:
    return pairs_case.pairs(qwen)


def test_the_layout_of_places(qwen, pairs):
    sites = lay_out(qwen, pairs)
    assert len(sites) == 3 * 4
    assert {place.role for place in sites} == {LAST_ROLE}
    heads = lay_out(qwen, pairs, sites=("z",), layers=(1,))
    assert [place.head for place in heads] == [0, 1, 2, 3]
    neurons = lay_out(qwen, pairs, sites=("mlp_post",), layers=(2,))
    assert [place.neuron for place in neurons] == list(range(48))
    roles = by_role(qwen, pairs, layers=(0,))
    assert [place.role for place in roles] == list(pairs.roles())
    last = last_k(qwen, pairs, 2, site="attn_out", layers=(0, 2))
    assert [(p.layer, p.role) for p in last] == [
        (layer, role) for layer in (0, 2) for role in ("end-2", "end-1", "end-2..end-1")
    ]
    assert len(last_k(qwen, pairs, 1)) == 3


def test_sites_that_an_architecture_lacks_are_skipped_or_refused():
    model = tiny.bridge("GPTNeoX").requires_grad_(False)
    model.tokenizer.padding_side = "left"
    pairs = pairs_case.pairs(model)
    assert sites_of(model) == ("resid_pre", "attn_out", "mlp_out")
    places = lay_out(model, pairs, layers=(1,))
    assert describe(model, places) == (
        "3 places: resid_pre, attn_out, mlp_out in layers 1; "
        "GPTNeoXForCausalLM has no resid_mid: skipped"
    )
    assert describe(model, places[:1]) == "1 place: resid_pre in layers 1"
    rows = patched(model, Patching(pairs, places, ("denoise",)), pairs_case.scorer)
    assert set(rows["site"]) == {"resid_pre", "attn_out", "mlp_out"}
    with pytest.raises(DialError, match="GPTNeoXForCausalLM has no site 'resid_mid': it has"):
        lay_out(model, pairs, sites=("resid_mid",))
    with pytest.raises(DialError, match="layer 9 is out of range"):
        lay_out(model, pairs, layers=(9,))
    with pytest.raises(DialError, match="k must be from 1 to the shortest prompt's"):
        last_k(model, pairs, 999)
