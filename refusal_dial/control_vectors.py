"""Control vectors in GGUF, llama.cpp's file format: a vector a layer, named `direction.<layer>`.

    h <- h + s v_n    after block n, at every position: site resid_post of layer n

Reads the header, the names and the float tensors, and nothing else of the format: no quantised
numbers, no big-endian files. Every length in the file is checked against the file before it is
believed. It does not know which model the vectors are for, beyond what the file says.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal_dial.types import DialError
from refusal_dial.values import spelt

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
SCALARS = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
FLOATS: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 28: np.dtype("<f8")}
NAME = re.compile(r"direction\.(\d+)")
MOST = 2**27  # bytes: a control vector of 128 layers of 16384 numbers is a sixteenth of it


@dataclass
class _Bytes:
    """Where the reading of a file stands. Raises `DialError` past its end."""

    data: bytes
    path: str
    at: int = 0

    def take(self, n: int) -> bytes:
        if n < 0 or self.at + n > len(self.data):
            raise DialError(
                f"{self.path} is a torn GGUF file: it ends after {len(self.data)} bytes"
            )
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """One metadata value; of an array only its length is kept."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY or depth > 1:
            raise DialError(f"{self.path} has GGUF metadata of an unknown type {kind}")
        inner, n = self.number("I"), self.number("Q")
        for _ in range(n):
            self.value(inner, depth + 1)
        return n


def read_control_vectors(path: str | Path) -> dict[int, Float[Tensor, " d_model"]]:
    """Layer to vector, raw: as long as the file has it.

    Raises `DialError` for a file that is no GGUF, is torn, holds no `direction.<layer>`, or holds
    one that is not a vector of floats.
    """
    size = Path(path).stat().st_size
    if size > MOST:
        raise DialError(f"{path} is {size / 2**20:.0f} MiB: a model, or no control vector")
    file = _Bytes(Path(path).read_bytes(), str(path))
    if file.data[:4] != MAGIC:
        raise DialError(f"{path} is not a GGUF file: it does not begin with GGUF")
    file.take(4)
    version = file.number("I")
    if version not in VERSIONS:
        raise DialError(
            f"{path} is GGUF version {version}: expected {' or '.join(map(str, VERSIONS))}"
        )
    n_tensors, n_values = file.number("Q"), file.number("Q")
    about = {}
    for _ in range(n_values):
        name = file.text()
        about[name] = file.value(file.number("I"))
    infos = [_info(file) for _ in range(n_tensors)]
    step = about.get("general.alignment", ALIGNMENT)
    if not isinstance(step, int) or step < 1:
        raise DialError(f"{path} has an alignment of {step!r}")
    start = -(-file.at // step) * step
    found = {}
    for name, shape, kind, offset in infos:
        match = NAME.fullmatch(name)
        layer = spelt(match[1]) if match else None
        if layer is not None:
            found[layer] = _vector(file, name, shape, kind, start + offset)
    if not found:
        raise DialError(
            f"{path} holds no control vector: expected tensors called direction.<layer>"
        )
    return dict(sorted(found.items()))


def _info(file: _Bytes) -> tuple[str, tuple[int, ...], int, int]:
    name, n_dims = file.text(), file.number("I")
    shape = tuple(file.number("Q") for _ in range(n_dims))
    return name, shape, file.number("I"), file.number("Q")


def _vector(
    file: _Bytes, name: str, shape: tuple[int, ...], kind: int, start: int
) -> Float[Tensor, " d_model"]:
    if kind not in FLOATS or sum(n != 1 for n in shape) > 1 or not shape:
        raise DialError(
            f"{file.path}: {name} has shape {list(shape)} and number type {kind}: expected a "
            "vector of float32, float16 or float64"
        )
    file.at = start
    raw = file.take(max(shape) * FLOATS[kind].itemsize)
    return torch.from_numpy(np.frombuffer(raw, FLOATS[kind]).astype(np.float64))
