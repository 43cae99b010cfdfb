"""Files damaged at random, and files that lie about themselves: one line, or the same as before."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path

import flip_case
import pytest
import torch
from safetensors.torch import save

from refusal_dial import directions
from refusal_dial.common import DialError
from refusal_dial.directions.files import read_direction

SLOW = {"recipe": 4}
DIGESTED = ("direction", "direction, any", "journal")


@pytest.mark.parametrize("name", flip_case.LOADERS)
def test_a_damaged_file_is_one_line_or_is_read(name: str, tmp_path: Path) -> None:
    """`python tests/flip_case.py N` tries N of each; docs/reliability.md has the figures."""
    cases = SLOW.get(name, 25)
    found = flip_case.outcomes(name, tmp_path, cases)
    assert set(found) <= {"refused", "the same", "otherwise"}, found
    assert found.total() == cases
    if name in DIGESTED[:2]:
        assert not found["otherwise"]


# --- safetensors whose header lies


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(
    dtype: object = "F32", shape: tuple[int, ...] = (4,), at: tuple[int, int] = (0, 16)
) -> dict[str, object]:
    return {"v": {"dtype": dtype, "shape": shape, "data_offsets": at}}


FOUR = torch.ones(4).numpy().tobytes()
LIES: dict[str, bytes] = {
    "a header of 2^63 bytes": raw(b"{}", length=2**63),
    "a header of 1 GB": raw(b"{}", length=10**9),
    "a header that is deep": raw(b"[" * 10**5),
    "a header that is a list": raw([1]),
    "seven bytes": b"1234567",
    "beyond the end": raw(one(at=(0, 10**12)), FOUR),
    "backwards": raw(one(at=(16, 0)), FOUR),
    "before the start": raw(one(at=(-16, 0)), FOUR),
    "with a hole": raw(one(at=(4, 20)), FOUR + FOUR),
    "more than there can be": raw(one(shape=(2**62, 2**62)), FOUR),
    "an unknown kind": raw(one("F7"), FOUR),
    "a kind that is a number": raw(one(3), FOUR),
    "nothing": raw(one(shape=(0,), at=(0, 0))),
    "one number": raw(one(shape=(), at=(0, 4)), FOUR[:4]),
    "packed": raw(one("F4", at=(0, 2)), FOUR),
    "metadata of numbers": raw({**one(), "__metadata__": {"layer": 3}}, FOUR),
    "metadata that is a list": raw({**one(), "__metadata__": [1]}, FOUR),
    "no tensors": raw({}),
    **{
        kind: save({"v": torch.ones(4).to(getattr(torch, kind))})
        for kind in ("int8", "int64", "bool", "complex64", "uint8", "float8_e4m3fn")
    },
    "4-d": save({"v": torch.ones(1, 2, 3, 4)}),
    "0 by 4": save({"v": torch.ones(0, 4)}),
    "4 by 0": save({"v": torch.ones(4, 0)}),
    "NaN": save({"v": torch.full((4,), float("nan"))}),
    "infinite": save({"v": torch.full((4,), float("inf"))}),
    "zero": save({"v": torch.zeros(4)}),
    "too long": save({"v": torch.full((4,), 1e300, dtype=torch.float64)}),
}


@pytest.mark.parametrize("kind", LIES)
def test_a_header_that_lies_is_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    path.write_bytes(LIES[kind])
    for name in ("v", "unit", "layer_1"):
        path.write_bytes(LIES[kind].replace(b'"v"', f'"{name}"'.encode()))
        with pytest.raises(DialError) as error:
            read_direction(path, 1)
        assert "\n" not in str(error.value)
    with pytest.raises(DialError):
        directions.load(path)
    path.write_bytes(raw(one(), FOUR))
    assert read_direction(path, 1).norm == 2


def test_tensors_that_are_no_numbers_in_rows_are_one_line(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for held in (nested, {"unit": nested}, torch.ones(4, device="meta"), torch.eye(4).to_sparse()):
        torch.save(held, tmp_path / "d.pt")
        with pytest.raises(DialError, match=r"holds a tensor with .*: save it dense"):
            read_direction(tmp_path / "d.pt", 1)
