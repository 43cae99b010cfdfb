"""A direction from any file: ours, another tool's tensors, or a control vector.

    .safetensors  ours (`directions.save`), or one with a vector, or a vector a layer
    .pt, .pth     a plain tensor, or names or layers to tensors; nothing else is ever unpickled
    .gguf         llama.cpp's control vectors: resid_post of the layer in their name

A stack of vectors is read as `layer d_model`, or `pos layer d_model`, which is how the
refusal_direction project keeps its candidates. That project's direction_metadata.json beside a
direction.pt says where it was read. Another tool's file rarely says which model it is for, or which
way it points. What a file does not say is not guessed: the layer has to be given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from refusal_dial import directions
from refusal_dial.control_vectors import read_control_vectors
from refusal_dial.directions import FLOATS, Direction, Provenance, from_vector
from refusal_dial.files import located
from refusal_dial.provenance import FORMAT
from refusal_dial.selection.layout import read_tensor
from refusal_dial.types import DialError, one_of
from refusal_dial.values import spelt

SUFFIXES = (".safetensors", ".pt", ".pth", ".gguf")
SINGLE = ("unit", "direction", "vector", "steering_vector", "refusal_direction")
SITE, POS = "resid_pre", -1


def read_direction(
    path: str | Path, layer: int | None = None, site: str | None = None, pos: int | None = None
) -> Direction:
    """The direction of a file, at the layer, site and position given, else at the file's own, else
    at resid_pre and -1. A vector that is not of unit length keeps its length as `norm`.

    Raises `DialError` for a file that cannot be used, and where neither the file nor the caller
    says which layer.
    """
    file = located(path)
    if file.suffix not in SUFFIXES:
        raise one_of(file.suffix or str(path), SUFFIXES, "kind of direction file")
    if not file.is_file():
        raise DialError(f"no direction file {str(path)!r}: expected one of {', '.join(SUFFIXES)}")
    if file.suffix == ".safetensors" and _is_ours(file):
        found = directions.load(file)
        own = found.provenance
        here = replace(
            own,
            layer=own.layer if layer is None else layer,
            site=site or own.site,
            pos=own.pos if pos is None else pos,
        )
        return replace(found, provenance=here)
    tensors, recorded = _tensors(file)
    layer = recorded.get("layer") if layer is None else layer
    pos = recorded.get("pos", POS) if pos is None else pos
    vector, layer = _chosen(str(path), tensors, layer, pos)
    about = Provenance(layer, site or recorded.get("site", SITE), pos, method=recorded["method"])
    return from_vector(vector, about)


def _is_ours(file: Path) -> bool:
    """Whether `directions.save` wrote it, however damaged since: it is not to pass for another
    tool's, which says less."""
    about = _header(file)[1]
    return "direction" in about or any(FORMAT in told for told in about.values())


def _header(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            names = list(opened.keys())
            return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DialError(f"{file} is not a safetensors file: {error}") from error


def _tensors(file: Path) -> tuple[Any, dict[str, Any]]:
    """What the file holds, a tensor or names to tensors, and what it records of its place."""
    if file.suffix == ".gguf":
        return read_control_vectors(file), {"site": "resid_post", "method": "control vector"}
    if file.suffix == ".safetensors":
        found, metadata = _header(file)
        return found, _recorded(metadata)
    beside = file.with_name("direction_metadata.json")
    recorded: dict[str, Any] = {}
    if file.name == "direction.pt" and beside.is_file():
        try:
            recorded = dict(json.loads(beside.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise DialError(f"{beside} cannot be read: {error}") from error
    return read_tensor(file), _recorded(recorded)


def _recorded(about: Mapping[str, Any]) -> dict[str, Any]:
    """Layer and position where they are whole numbers."""
    found: dict[str, Any] = {"method": "file"}
    for name in ("layer", "pos"):
        number = spelt(str(about.get(name, "")))
        if number is not None:
            found[name] = number
    return found


def _chosen(path: str, found: Any, layer: int | None, pos: int) -> tuple[Tensor, int]:
    """The one vector that is meant, and its layer."""
    if isinstance(found, Mapping):
        tensors = {name: one for name, one in found.items() if isinstance(one, Tensor)}
        single = next((tensors[name] for name in SINGLE if name in tensors), None)
        if single is None and len(tensors) == 1 and _layer_of(next(iter(tensors))) is None:
            single = next(iter(tensors.values()))
        if single is None:
            return _of_layers(path, tensors, layer)
        found = single
    if not isinstance(found, Tensor) or found.dtype not in FLOATS:
        raise DialError(
            f"{path} holds no tensor of floats of 16, 32 or 64 bits, and a direction is one"
        )
    shape = tuple(found.shape)
    if found.ndim == 3 and -shape[0] <= pos < 0:
        found = found[pos]
    elif found.ndim == 3:
        raise DialError(f"{path} has shape {shape}, pos layer d_model, and no position {pos}")
    if found.ndim == 2 and len(found) == 1:
        found = found[0]
    if found.ndim == 2:
        return _of_layers(path, dict(enumerate(found)), layer)
    if found.ndim != 1:
        raise DialError(f"{path} has shape {shape}: expected d_model, or layer d_model")
    if layer is None:
        raise DialError(f"{path} does not say which layer its direction is for: give --layer")
    return found, layer


def _of_layers(path: str, tensors: Mapping[Any, Tensor], layer: int | None) -> tuple[Tensor, int]:
    layers = {_layer_of(name): one for name, one in tensors.items()}
    known = sorted(n for n in layers if n is not None)
    if not known or len(known) < len(tensors):
        names = ", ".join(map(repr, list(tensors)[:5])) or "no tensors"
        raise DialError(
            f"{path} holds {names}: expected one vector, or a vector a layer with the layer's "
            f"number in its name; or a name of {', '.join(SINGLE)}"
        )
    if layer is None and len(known) == 1:
        layer = known[0]
    if layer is None:
        raise DialError(
            f"{path} has directions of {len(known)} layers, {known[0]} to {known[-1]}: give --layer"
        )
    if layer not in layers:
        raise DialError(f"{path} has no direction of layer {layer}: it has {_ranges(known)}")
    vector = layers[layer].squeeze()
    if vector.ndim != 1 or vector.dtype not in FLOATS:
        raise DialError(f"{path}: what it has for layer {layer} is no vector of floats")
    return vector, layer


def _layer_of(name: Any) -> int | None:
    """`20`, `layer_20`, `direction.20`, `blocks.20.hook_resid_pre`: the only number in a name."""
    numbers = re.findall(r"[0-9]+", str(name))
    return spelt(numbers[0]) if len(numbers) == 1 else None


def _ranges(known: list[int]) -> str:
    whole = known == list(range(known[0], known[-1] + 1))
    return f"{known[0]} to {known[-1]}" if whole else ", ".join(map(str, known))
