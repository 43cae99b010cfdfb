"""GGUF control vectors: what is read, and what is refused. The `gguf` package writes the files."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.common import DialError
from refusal_dial.directions import files
from refusal_dial.directions.files import read_control_vectors

KINDS = ("float32", "float16", "float64")
VECTORS = {"direction.3": [0.5, -1.25, 2.0], "direction.1": [4.0, 0.0, -0.5], "other": [9.0]}


def gguf(vectors, kind="float32", alignment=None) -> bytes:
    """A control vector's file, with metadata of several kinds."""
    with TemporaryDirectory() as folder:
        writer = GGUFWriter(Path(folder) / "v.gguf", "controlvector")
        writer.add_string("controlvector.model_hint", "qwen2")
        writer.add_array("tags", ["a", "bc"])
        writer.add_array("layers", [1, 2, 3])
        if alignment:
            writer.add_custom_alignment(alignment)
        for name, values in vectors.items():
            writer.add_tensor(name, np.asarray(values, dtype=kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return (Path(folder) / "v.gguf").read_bytes()


@cache
def whole() -> bytes:
    return gguf(VECTORS)


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


@given(cut=st.integers(0, len(whole()) - 1))
def test_a_torn_file_is_refused_in_one_line(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("torn") / "v.gguf"
    path.write_bytes(whole()[:cut])
    found = outcome(path)
    if isinstance(found, str):
        assert str(path) in found
        assert "\n" not in found
    else:
        assert found[3].tolist() == VECTORS["direction.3"]  # the tail is of a tensor not asked for


@given(at=st.integers(0, 250), byte=st.integers(0, 255))
def test_a_damaged_header_never_ends_in_another_error(tmp_path_factory, at, byte):
    data = bytearray(whole())
    data[at] = byte
    path = tmp_path_factory.mktemp("bad") / "v.gguf"
    path.write_bytes(bytes(data))
    found = outcome(path)
    assert not isinstance(found, str) or str(path) in found


def instead(old: bytes, new: bytes) -> bytes:
    """The file with these bytes in place of those."""
    assert whole().count(old) == 1
    return whole().replace(old, new)


TAG = struct.pack("<IQ", 5, 3) + struct.pack("<3i", 1, 2, 3)  # an array of three 32-bit numbers


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not begin with GGUF"),
        (b"PK\3\4 and so on", "does not begin with GGUF"),
        (instead(b"GGUF\3", b"GGUF\1"), "cannot be read as GGUF: .*version 1"),
        (gguf({"blk.0.weight": [1.0]}), "expected tensors called direction.<layer>"),
        (instead(TAG, struct.pack("<I", 77) + TAG[4:]), r"77\) is not a valid"),
        (instead(TAG, TAG[:4] + struct.pack("<Q", 2**60) + TAG[12:]), "it is torn, and ends"),
        (gguf({"direction.1": [[1.0, 2.0], [3.0, 4.0]]}), r"has shape \[2, 2\]"),
        (gguf({"direction.1": [1, 2]}, "int32"), "number type I32: expected a vector of float32"),
    ],
)
def test_what_is_no_control_vector_is_refused(tmp_path, data, message):
    path = tmp_path / "v.gguf"
    path.write_bytes(data)
    with pytest.raises(DialError, match=message) as error:
        read_control_vectors(path)
    assert "\n" not in str(error.value)


def test_a_header_that_takes_long_to_read_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(files._Reader, "most_reads", 100)
    path = tmp_path / "v.gguf"
    path.write_bytes(gguf({f"direction.{i}": [1.0] for i in range(100)}))
    with pytest.raises(DialError, match="its header has more than 100 entries"):
        read_control_vectors(path)


def test_a_file_of_a_models_size_is_not_read(tmp_path):
    path = tmp_path / "v.gguf"
    with path.open("wb") as file:
        file.truncate(files.MOST_BYTES + 1)
    with pytest.raises(DialError, match="is 128 MiB: a model, or no control vector"):
        read_control_vectors(path)
