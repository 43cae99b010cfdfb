"""GGUF control vectors: what is read, and what is refused. The files are written here, by hand."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.common import DialError
from refusal_dial.directions.files import read_control_vectors

KINDS = {"<f4": 0, "<f2": 1, "<f8": 28}


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(vectors, kind="<f4", alignment=None, version=3, extra=b"", n_extra=0):
    """A control vector as llama.cpp lays it out: header, metadata, names, padding, numbers."""
    step = alignment or 32
    about = text("general.architecture") + struct.pack("<I", 8) + text("controlvector")
    about += text("tags") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
    n_about = 2 + n_extra
    if alignment:
        about += text("general.alignment") + struct.pack("<II", 4, alignment)
        n_about += 1
    infos, data = b"", b""
    for name, values in vectors.items():
        data += b"\0" * (-len(data) % step)
        infos += text(name) + struct.pack("<IQIQ", 1, len(values), KINDS[kind], len(data))
        data += np.asarray(values, dtype=kind).tobytes()
    head = b"GGUF" + struct.pack("<IQQ", version, len(vectors), n_about) + about + extra + infos
    return head + b"\0" * (-len(head) % step) + data


VECTORS = {"direction.3": [0.5, -1.25, 2.0], "direction.1": [4.0, 0.0, -0.5], "other": [9.0]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alignment", [None, 8, 64])
def test_layers_and_numbers_are_read_at_any_alignment(tmp_path, kind, alignment):
    path = tmp_path / "v.gguf"
    path.write_bytes(gguf(VECTORS, kind, alignment))
    found = read_control_vectors(path)
    assert list(found) == [1, 3]
    assert found[3].tolist() == [0.5, -1.25, 2.0]
    assert found[1].dtype == torch.float64


def outcome(path):
    """The vectors, or what the error says."""
    try:
        return read_control_vectors(path)
    except DialError as error:
        return str(error)


@given(cut=st.integers(0, len(gguf(VECTORS)) - 1))
def test_a_torn_file_is_refused_in_one_line(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("torn") / "v.gguf"
    path.write_bytes(gguf(VECTORS)[:cut])
    found = outcome(path)
    if isinstance(found, str):
        assert str(path) in found
        assert "\n" not in found
    else:
        assert found[3].tolist() == VECTORS["direction.3"]  # the tail is of a tensor not asked for


@given(at=st.integers(0, 120), byte=st.integers(0, 255))
def test_a_damaged_header_never_ends_in_another_error(tmp_path_factory, at, byte):
    data = bytearray(gguf(VECTORS))
    data[at] = byte
    path = tmp_path_factory.mktemp("bad") / "v.gguf"
    path.write_bytes(bytes(data))
    found = outcome(path)
    assert not isinstance(found, str) or str(path) in found


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\3\4 and so on", "does not begin with GGUF"),
        (gguf(VECTORS, version=1), "is GGUF version 1: expected 2 or 3"),
        (gguf({"blk.0.weight": [1.0]}), "expected tensors called direction.<layer>"),
        (gguf(VECTORS, extra=text("x") + struct.pack("<I", 77), n_extra=1), "unknown type 77"),
        (
            gguf(VECTORS).replace(struct.pack("<IQI", 1, 3, 0), struct.pack("<IQI", 1, 3, 2)),
            "type 2",
        ),
    ],
)
def test_what_is_no_control_vector_is_refused(tmp_path, data, message):
    path = tmp_path / "v.gguf"
    path.write_bytes(data)
    with pytest.raises(DialError, match=message):
        read_control_vectors(path)
