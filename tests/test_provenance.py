"""What a direction's file tells of it: read back as it was written, or refused by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.common import SITES, DialError
from refusal_dial.directions.learning import FORMAT, Provenance, as_text, from_recorded

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
WHERE = st.fixed_dictionaries(
    {
        "layer": st.integers(0, 200),
        "site": st.sampled_from(SITES),
        "pos": st.integers(-9, 9),
        "method": TEXT,
        "model": TEXT,
        "revision": TEXT,
        "seed": st.none() | st.integers(0, 2**62),
        "prompt_ids": st.lists(TEXT, max_size=3).map(tuple),
        "data_hash": TEXT,
        "pool": st.integers(1, 9),
    }
)


@given(norm=st.floats(0, 1e30), where=WHERE, vector=st.binary(max_size=16))
def test_it_comes_back_as_it_was_written(norm, where, vector):
    where = Provenance(**where)
    recorded = json.loads(as_text(norm, where, vector))
    assert from_recorded("d", recorded, vector) == (norm, where)
    assert from_recorded("d", recorded, None) == (norm, where)
    assert recorded["format"] == FORMAT


@given(where=WHERE, other=WHERE, vector=st.binary(min_size=1, max_size=16))
def test_another_vector_or_another_place_is_not_what_the_digest_says(where, other, vector):
    where, other = Provenance(**where), Provenance(**other)
    recorded = json.loads(as_text(1.0, where, vector))
    with pytest.raises(DialError, match="d was altered since it was written"):
        from_recorded("d", recorded, vector[:-1])
    if other != where:
        moved = json.loads(as_text(1.0, other, vector)) | {"digest": recorded["digest"]}
        with pytest.raises(DialError, match="d was altered since it was written"):
            from_recorded("d", moved, vector)


def test_a_file_without_a_digest_is_taken_at_its_word():
    recorded = json.loads(as_text(1.0, Provenance(1, "z", -1), b"v"))
    del recorded["digest"]
    assert from_recorded("d", recorded, b"w") == (1.0, Provenance(1, "z", -1))


@pytest.mark.parametrize(
    "recorded", [None, [], 3, "x", {}, {"format": 1}, {"format": "direction 2"}]
)
def test_another_version_is_named(recorded):
    with pytest.raises(DialError, match="d has metadata of another version: expected 'refusal_d"):
        from_recorded("d", recorded, b"")
