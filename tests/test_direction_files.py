"""Directions from files of every kind: the same vector, its place, and what is not guessed."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch
from safetensors.torch import save_file
from test_control_vectors import gguf

from refusal_dial import directions
from refusal_dial.common import DialError
from refusal_dial.directions import files
from refusal_dial.directions.files import read_direction
from refusal_dial.directions.learning import Provenance, from_vector

VECTOR = torch.tensor([3.0, 0.0, -4.0])
STACK = torch.stack([VECTOR * (n + 1) for n in range(4)])


def same(found, layer, norm=5.0, site="resid_pre", pos=-1):
    torch.testing.assert_close(found.unit, VECTOR / 5)
    at = found.provenance
    assert (at.layer, at.site, at.pos) == (layer, site, pos)
    assert found.norm == pytest.approx(norm)


def test_our_own_file_keeps_its_place_unless_another_is_asked_for(tmp_path):
    one = from_vector(VECTOR, Provenance(7, "attn_out", -3, prompt_ids=("a",)))
    directions.save(one, tmp_path / "d.safetensors")
    found = read_direction(tmp_path / "d.safetensors")
    assert found.provenance == one.provenance
    same(read_direction(tmp_path / "d.safetensors", 2, "resid_mid", -1), 2, site="resid_mid")


@pytest.mark.parametrize(
    ("content", "layer", "norm"),
    [
        (VECTOR, 9, 5.0),
        (VECTOR[None], 9, 5.0),
        (STACK, 1, 10.0),
        (torch.stack([STACK * 2, STACK]), 3, 20.0),
        ({"direction": VECTOR, "bias": torch.zeros(2)}, 9, 5.0),
        ({"anything": VECTOR}, 9, 5.0),
        ({20: VECTOR, 21: -VECTOR}, 20, 5.0),
        ({"layer_20": VECTOR, "layer_21": -VECTOR}, 20, 5.0),
    ],
)
def test_plain_tensors_of_every_shape_are_read(tmp_path, content, layer, norm):
    torch.save(content, tmp_path / "d.pt")
    same(read_direction(tmp_path / "d.pt", layer), layer, norm)


def test_a_layer_is_taken_from_the_file_where_it_says_so(tmp_path):
    save_file({"vector": VECTOR}, tmp_path / "a.safetensors", {"layer": "4", "pos": "-2"})
    same(read_direction(tmp_path / "a.safetensors"), 4, pos=-2)
    torch.save({"layer_20": VECTOR}, tmp_path / "b.pt")
    same(read_direction(tmp_path / "b.pt"), 20)
    torch.save(VECTOR, tmp_path / "direction.pt")
    (tmp_path / "direction_metadata.json").write_text(json.dumps({"pos": -5, "layer": 11}))
    same(read_direction(tmp_path / "direction.pt"), 11, pos=-5)
    (tmp_path / "c.gguf").write_bytes(gguf({"direction.6": VECTOR.tolist()}))
    same(read_direction(tmp_path / "c.gguf"), 6, site="resid_post")
    (tmp_path / "d.gguf").write_bytes(gguf({f"direction.{n}": VECTOR.tolist() for n in (5, 6, 9)}))
    same(read_direction(tmp_path / "d.gguf", 9), 9, site="resid_post")


@pytest.mark.parametrize(
    ("content", "layer", "message"),
    [
        (VECTOR, None, "does not say which layer its direction is for: give --layer"),
        (STACK, None, "directions of 4 layers, 0 to 3: give --layer"),
        (STACK, 4, r"no direction of layer 4: it has 0 to 3 \(what leaves a block, "),
        ({"layer_19": VECTOR}, 20, r"no direction of layer 20: it has 19 \(what leaves a block, "),
        ({3: VECTOR, 9: VECTOR}, 4, "it has 3, 9"),
        (VECTOR.int(), 1, "no tensor of floats"),
        (torch.zeros(1, 1, 1, 1), 1, "expected d_model, or layer d_model"),
        (torch.ones(3, 2, 4), 1, None),
        ({"encoder": VECTOR, "decoder": VECTOR}, 1, "expected one vector, or a vector a layer"),
        ({}, 1, "holds no tensors"),
        ({"layer_" + "9" * 5000: VECTOR, "layer_3": VECTOR}, 1, "expected one vector, or a vec"),
        (VECTOR.to_sparse(), 1, "layout torch.sparse_coo: save it dense"),
        (STACK.to_sparse_csr(), 1, "layout torch.sparse_csr: save it dense"),
        (VECTOR.to("meta"), 1, r"numbers left out \(meta\): save it dense"),
        ({3: VECTOR.to_sparse(), 9: VECTOR}, 9, "layout torch.sparse_coo"),
        (VECTOR[:1].expand(10**12), 1, r"shape \[1000000000000\] made of 3 numbers: save it with"),
        ({3: VECTOR, 9: VECTOR[:1].expand(10**12)}, 3, "made of 3 numbers: save it with"),
        (VECTOR * 0, 1, "direction is zero"),
        (VECTOR * float("nan"), 1, "NaN or infinite"),
    ],
)
def test_what_is_not_said_or_not_there_is_not_guessed(tmp_path, content, layer, message):
    torch.save(content, tmp_path / "d.pt")
    if message is None:
        with pytest.raises(DialError, match="no position -4"):
            read_direction(tmp_path / "d.pt", layer, pos=-4)
        return
    with pytest.raises(DialError, match=message):
        read_direction(tmp_path / "d.pt", layer)


def test_a_header_of_more_tensors_than_a_direction_has_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "d.safetensors"
    save_file({f"layer_{n}": VECTOR.clone() for n in range(50)}, path)
    assert read_direction(path, 49).provenance.layer == 49
    monkeypatch.setattr(files, "MOST_TENSORS", 49)
    with pytest.raises(DialError, match="holds 50 tensors: a model, or no direction"):
        read_direction(path, 49)


def test_files_that_are_no_directions(tmp_path):
    with pytest.raises(
        DialError, match=r"no direction file .* expected one of \.safetensors, \.pt"
    ):
        read_direction(tmp_path / "gone.pt")
    with pytest.raises(DialError, match=r"unknown kind of direction file '\.bin'"):
        read_direction(tmp_path / "d.bin")
    (tmp_path / "d.safetensors").write_bytes(b"no")
    with pytest.raises(DialError, match="is not a safetensors file"):
        read_direction(tmp_path / "d.safetensors")
    torch.save({"x": Fraction(1, 3)}, tmp_path / "evil.pt")
    with pytest.raises(DialError, match=r"nothing else is ever unpickled"):
        read_direction(tmp_path / "evil.pt", 1)


@pytest.mark.parametrize("content", ["[" * 10**5, '{"layer": ' + "9" * 5000 + "}", "[1]", "3"])
def test_metadata_that_cannot_be_read_is_named(content, tmp_path):
    torch.save(VECTOR, tmp_path / "direction.pt")
    (tmp_path / "direction_metadata.json").write_text(content)
    with pytest.raises(DialError, match=r"direction_metadata\.json cannot be read"):
        read_direction(tmp_path / "direction.pt", 1)


def test_a_number_too_long_for_a_layer_is_none(tmp_path):
    (tmp_path / "a.gguf").write_bytes(gguf({"direction." + "9" * 5000: VECTOR.tolist()}))
    with pytest.raises(DialError, match="holds no control vector"):
        read_direction(tmp_path / "a.gguf")
    save_file({"v": VECTOR}, tmp_path / "a.safetensors", metadata={"layer": "9" * 5000})
    with pytest.raises(DialError, match="does not say which layer"):
        read_direction(tmp_path / "a.safetensors")


def test_our_file_with_a_damaged_key_does_not_pass_for_another_tools(tmp_path):
    path = tmp_path / "d.safetensors"
    found = from_vector(torch.ones(4), Provenance(3, "z", -1, model="org/m"))
    directions.save(found, path)
    path.write_bytes(path.read_bytes().replace(b'"direction":', b'"dirextion":', 1))
    with pytest.raises(DialError, match="holds no direction: expected one vector 'unit'"):
        read_direction(path, 1)
