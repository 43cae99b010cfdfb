"""A direction from any file: ours, another tool's tensors, or a control vector.

    .safetensors  ours (`directions.save`), or one with a vector, or a vector a layer
    .pt, .pth     a plain tensor, or names or layers to tensors; nothing is ever unpickled.
                  lm-eval's `steered` and steering-vectors: resid_post of the layer they name
    .gguf         control vectors of repeng and llama.cpp: resid_post of the layer in their name
    .svec         CAST: resid_pre of the layer in their key, which is where it adds them
    .json         vllm-lens (resid_post), Neuronpedia (the site it names)

A stack of vectors is read as `layer d_model`, or `pos layer d_model`, which is how the
refusal_direction project keeps its candidates; of persona_vectors' stack, rows are resid_pre. What
a file does not record is not guessed: the layer has to be given. `interchange` writes these files.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import ReaderTensor
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError, format_value, located, one_line, one_of, parse_int
from refusal_dial.directions.learning import (
    FLOATS,
    FORMAT,
    Direction,
    Provenance,
    from_vector,
    load,
)
from refusal_dial.model.gguf import CheckedReader
from refusal_dial.model.loading import identity

# --------------------------------------------------------------------------------------------------
# Control vectors in GGUF, llama.cpp's file format: a vector a layer, named `direction.<layer>`.
#
#     h <- h + s v_n    after block n, at every position: site resid_post of layer n
#
# The `gguf` package reads them. It believes what a file says of its own lengths, so each is checked
# against the file first, and how much is read is bounded.


NAME = re.compile(r"direction\.(\d+)")

MOST_BYTES = 2**27  # bytes: a control vector of 128 layers of 16384 numbers is a sixteenth of it

MOST_READS = 10**5  # of numbers and texts in a header: a control vector's has a thousand

GGUF_FLOATS = ("F32", "F16", "F64")


class _Reader(CheckedReader):
    """Ends where the file does, and after as many entries as a control vector has."""

    most_reads = MOST_READS


def read_control_vectors(path: str | Path) -> dict[int, Float[Tensor, " d_model"]]:
    """Layer to vector, raw: as long as the file has it.

    Raises `DialError` for a file that is no GGUF, is torn, holds no `direction.<layer>`, or holds
    one that is not a vector of floats.
    """
    size = Path(path).stat().st_size
    if size > MOST_BYTES:
        raise DialError(f"{path} is {size / 2**20:.0f} MiB: a model, or no control vector")
    with Path(path).open("rb") as file:
        if file.read(4) != b"GGUF":
            raise DialError(f"{path} is not a GGUF file: it does not begin with GGUF")
    try:
        with np.errstate(all="ignore"):  # lengths that add up to more than 64 bits
            tensors = _Reader(path).tensors
    except (ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise DialError(f"{path} cannot be read as GGUF: {one_line(error, 120)}") from error
    found = {}
    for tensor in tensors:
        match = NAME.fullmatch(tensor.name)
        layer = parse_int(match[1]) if match else None
        if layer is not None:
            found[layer] = _vector(str(path), tensor)
    if not found:
        raise DialError(
            f"{path} holds no control vector: expected tensors called direction.<layer>"
        )
    return dict(sorted(found.items()))


def _vector(path: str, tensor: ReaderTensor) -> Float[Tensor, " d_model"]:
    shape, kind = tensor.shape.tolist(), tensor.tensor_type.name
    if kind not in GGUF_FLOATS or sum(n != 1 for n in shape) > 1 or not shape:
        raise DialError(
            f"{path}: {tensor.name} has shape {shape} and number type {kind}: expected a vector of "
            "float32, float16 or float64"
        )
    return torch.from_numpy(tensor.data.reshape(-1).astype(np.float64))


# --------------------------------------------------------------------------------------------------
# Any file: which tensor in it is the direction, and where it was read.


SUFFIXES = (".safetensors", ".pt", ".pth", ".gguf", ".svec", ".json")

SINGLE_NAMES = ("unit", "direction", "vector", "steering_vector", "refusal_direction")

SITE, DEFAULT_POS = "resid_pre", -1

MOST_TENSORS = 10_000  # ten vectors a layer of a model of a thousand layers


def read_direction(
    path: str | Path, layer: int | None = None, site: str | None = None, pos: int | None = None
) -> Direction:
    """The direction of a file, at the layer, site and position given, else at the file's own, else
    at resid_pre and -1. A vector that is not of unit length keeps its length as `norm`.

    What leaves block n enters block n + 1: where a file says at which of the two its vectors stand
    and `site` names the other, the vector of that place is found, and `layer` counts there.

    Raises `DialError` for a file that cannot be used, and where neither the file nor the caller
    says which layer.
    """
    file = located(path)
    if file.suffix not in SUFFIXES:
        raise one_of(file.suffix or str(path), SUFFIXES, "kind of direction file")
    if not file.is_file():
        raise DialError(f"no direction file {str(path)!r}: expected one of {', '.join(SUFFIXES)}")
    if file.suffix == ".safetensors" and _is_ours(file):
        found = load(file)
        own = found.provenance
        here = replace(
            own,
            layer=own.layer + _shift(own.site, site or own.site) if layer is None else layer,
            site=site or own.site,
            pos=own.pos if pos is None else pos,
        )
        return replace(found, provenance=here)
    tensors, recorded = _tensors(file)
    site = site or recorded.get("site", SITE)
    shift = _shift(recorded.get("site"), site)
    wanted = recorded.get("layer") if layer is None else layer - shift
    pos = recorded.get("pos", DEFAULT_POS) if pos is None else pos
    vector, number = _chosen(str(path), tensors, wanted, pos)
    return from_vector(vector, Provenance(number + shift, site, pos, method=recorded["method"]))


def _shift(own: str | None, site: str) -> int:
    """What is added to a layer at site `own` to name the same place at `site`: the input of block n
    is the output of block n - 1. 0 for sites that share no place."""
    boundary = {"resid_pre": 0, "resid_post": 1}
    return boundary[own] - boundary[site] if own in boundary and site in boundary else 0


def direction_file(where: str, layer: int | None = None) -> Path:
    """A direction's file as it is typed, or the one in a run folder (that of `layer` where it has
    several).

    Raises `DialError` for a run whose directions leave the choice open.
    """
    path = located(where)
    if not path.is_dir():
        return path
    found = sorted(path.glob("direction*.safetensors"))
    wanted = [one for one in found if one.stem == f"direction_layer{layer}"]
    if len(found) == 1 or len(wanted) == 1:
        return (wanted or found)[0]
    names = ", ".join(one.name for one in found) or "none"
    raise DialError(f"{path} holds these directions: {names}; name a file, or --layer")


def direction_at(
    where: str, layer: int | None = None, site: str | None = None, pos: int | None = None
) -> Direction:
    """`read_direction` of a file of any format, or of the one in a run folder.

    Raises `DialError` as `direction_file` and `read_direction` do.
    """
    return read_direction(direction_file(where, layer), layer, site, pos)


def _is_ours(file: Path) -> bool:
    """Whether `directions.save` wrote it, however damaged since: it is not to pass for another
    tool's, which says less."""
    about = _header(file)[1]
    return "direction" in about or any(FORMAT in found for found in about.values())


def _header(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            names = list(opened.keys())
            if len(names) > MOST_TENSORS:
                raise DialError(
                    f"{file} holds {len(names)} tensors: a model, or no direction, which is a "
                    "vector, or a vector a layer"
                )
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
    if file.suffix in (".svec", ".json"):
        return _json(file)
    beside = file.with_name("direction_metadata.json")
    recorded: dict[str, Any] = {}
    if file.name == "direction.pt" and beside.is_file():
        try:
            recorded = dict(json.loads(beside.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise DialError(f"{beside} cannot be read: {error}") from error
    found = read_tensor(file)
    if isinstance(found, Mapping) and "layer_activations" in found:
        return _steering_vectors(str(file), found), _after("steering-vectors")
    if _is_steered(found):
        return _steered(str(file), found), _after("lm-eval steered")
    return found, _recorded(recorded)


def _recorded(about: Mapping[str, Any]) -> dict[str, Any]:
    """Layer and position where they are whole numbers."""
    found: dict[str, Any] = {"method": "file"}
    for name in ("layer", "pos"):
        number = parse_int(str(about.get(name, "")))
        if number is not None:
            found[name] = number
    return found


def _chosen(path: str, found: Any, layer: int | None, pos: int) -> tuple[Tensor, int]:
    """The one vector that is meant, and its layer."""
    if isinstance(found, Mapping):
        tensors = {name: one for name, one in found.items() if isinstance(one, Tensor)}
        single = next((tensors[name] for name in SINGLE_NAMES if name in tensors), None)
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
    if found.ndim == 2:  # rows of zeros are layers without a direction
        rows = {number: row for number, row in enumerate(found) if bool(row.any())}
        if not rows:
            raise DialError(f"{path} holds {len(found)} rows of zeros: no direction is zero")
        return _of_layers(path, rows, layer)
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
            f"number in its name; or a name of {', '.join(SINGLE_NAMES)}"
        )
    if layer is None and len(known) == 1:
        layer = known[0]
    if layer is None:
        raise DialError(
            f"{path} has directions of {len(known)} layers, {known[0]} to {known[-1]}: give --layer"
        )
    if layer not in layers:
        before = (
            " (what leaves a block, resid_post, enters the next)" if layer - 1 in layers else ""
        )
        raise DialError(
            f"{path} has no direction of layer {layer}: it has {_ranges(known)}{before}"
        )
    vector = layers[layer].squeeze()
    if vector.ndim != 1 or vector.dtype not in FLOATS:
        raise DialError(f"{path}: what it has for layer {layer} is no vector of floats")
    return vector, layer


def _layer_of(name: Any) -> int | None:
    """`20`, `layer_20`, `direction.20`, `blocks.20.hook_resid_pre`: the only number in a name."""
    numbers = re.findall(r"[0-9]+", str(name))
    return parse_int(numbers[0]) if len(numbers) == 1 else None


def _ranges(known: list[int]) -> str:
    whole = len(known) > 1 and known == list(range(known[0], known[-1] + 1))
    return f"{known[0]} to {known[-1]}" if whole else ", ".join(map(str, known))


# --------------------------------------------------------------------------------------------------
# Layouts that say more than tensors do: at which site, how strongly, or in JSON. `interchange` has
# the equation of each. What cannot be said by one vector that is added is refused.


BLOCK = re.compile(r"(?:[A-Za-z_]+\.)+(\d+)|(\d+)")

MOST_TEXT = 2**28  # characters of JSON: 128 layers of 16384 numbers of 20 characters are a sixth

NUMPY_DTYPES = {
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float64,
    "int16": np.int16,
}

JSON_KEYS = (
    "directions (.svec); activations and layer_indices (vllm-lens); or vector, layerNumber and "
    "hookType (Neuronpedia)"
)


def _after(method: str) -> dict[str, Any]:
    return {"site": "resid_post", "method": method}


def _keys(found: object) -> str:
    """What a file has at its top, for an error to list."""
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    return f"the keys {', '.join(format_value(key, 40) for key in list(found)[:8]) or '(none)'}"


def _steering_vectors(path: str, found: Mapping[Any, Any]) -> dict[int, Tensor]:
    """`SteeringVector(layer_activations, layer_type)`, as `interchange.to_steering_vectors` has
    it."""
    tensors, kind = found["layer_activations"], found.get("layer_type", "decoder_block")
    if not isinstance(tensors, Mapping) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise DialError(
            f"{path}: layer_activations must be layers to tensors, not {_keys(tensors)}"
        )
    if kind != "decoder_block":
        raise DialError(
            f"{path} is of layer_type {format_value(kind, 40)}: expected decoder_block, whose "
            "output is the residual stream"
        )
    return dict(tensors)


def _is_steered(found: object) -> bool:
    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(v, Mapping) and "steering_vector" in v for v in found.values())
    )


def _steered(path: str, found: Mapping[Any, Mapping[str, Any]]) -> dict[int, Tensor]:
    """lm-eval's `{hookpoint: {"steering_vector", "steering_coefficient", "action", ...}}`."""
    tensors = {}
    for name, about in found.items():
        match, vector = BLOCK.fullmatch(str(name)), about["steering_vector"]
        layer = parse_int(match[1] or match[2]) if match else None
        if layer is None:
            raise DialError(
                f"{path} steers at {format_value(name, 60)}: expected a block such as layers.19"
            )
        if about.get("action") != "add" or about.get("head_index") is not None:
            raise DialError(
                f"{path} has action {format_value(about.get('action'), 40)} and head_index "
                f"{format_value(about.get('head_index'), 40)} at {name}: expected add and None"
            )
        strength = about.get("steering_coefficient", 1.0)
        if not isinstance(vector, Tensor) or not isinstance(strength, int | float):
            raise DialError(
                f"{path}: the steering_vector of {name} must be a tensor and its coefficient a "
                f"number, not {_keys(vector)} and {format_value(strength, 40)}"
            )
        tensors[layer] = vector.double() * strength
    return tensors


def _json(file: Path) -> tuple[dict[int, Tensor], dict[str, Any]]:
    """The vectors of a JSON file by layer, and what their site is."""
    if file.stat().st_size > MOST_TEXT:
        raise DialError(f"{file} is {file.stat().st_size / 2**20:.0f} MiB: no direction is as long")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DialError(f"{file} is not valid JSON: {one_line(error, 120)}") from error
    keys = set(found) if isinstance(found, Mapping) else set()
    if "directions" in keys:
        return _svec(str(file), found), {"site": "resid_pre", "method": "svec"}
    if {"activations", "layer_indices"} <= keys:
        return _vllm_lens(str(file), found), _after("vllm-lens")
    if {"vector", "layerNumber", "hookType"} <= keys:
        return _neuronpedia(str(file), found)
    raise DialError(f"{file} holds {_keys(found)}: expected {JSON_KEYS}")


def _numbers(path: str, what: str, value: object) -> Tensor:
    """A vector out of a list of numbers, or a list of one such list."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    plain = isinstance(value, list) and all(
        isinstance(x, int | float) and not isinstance(x, bool) for x in value
    )
    try:
        vector = torch.tensor(value if plain else [], dtype=torch.float64)
    except (OverflowError, ValueError, RuntimeError):
        vector = torch.tensor([])
    if not len(vector):
        raise DialError(f"{path}: {what} must be a list of numbers, not {format_value(value, 60)}")
    return vector


def _number(path: str, name: str, value: object) -> int:
    layer = parse_int(str(value)) if not isinstance(value, bool) else None
    if layer is None or layer < 0:
        raise DialError(
            f"{path}: {name} must be a whole number from 0 up, not {format_value(value, 60)}"
        )
    return layer


def _svec(path: str, found: Mapping[str, Any]) -> dict[int, Tensor]:
    """`{"model_type", "directions": {"n": [d] or [[d]]}, "explained_variances"}`."""
    by_layer = found["directions"]
    if not isinstance(by_layer, Mapping) or not by_layer:
        raise DialError(f"{path}: directions must be layers to vectors, not {_keys(by_layer)}")
    return {
        _number(path, "a layer of directions", n): _numbers(path, f"the direction of layer {n}", v)
        for n, v in by_layer.items()
    }


def _neuronpedia(path: str, found: Mapping[str, Any]) -> tuple[dict[int, Tensor], dict[str, Any]]:
    """`{"modelId", "layerNumber", "hookType", "vector", ...}`."""
    kind = found["hookType"]
    sites = {"hook_resid_pre": "resid_pre", "hook_resid_post": "resid_post"}
    if not isinstance(kind, str) or kind not in sites:
        raise one_of(
            format_value(kind, 60) if not isinstance(kind, str) else kind, sites, "hookType"
        )
    layer = _number(path, "layerNumber", found["layerNumber"])
    vector = _numbers(path, "vector", found["vector"])
    return {layer: vector}, {"site": sites[kind], "method": "neuronpedia"}


def _vllm_lens(path: str, found: Mapping[str, Any]) -> dict[int, Tensor]:
    """`{"activations": a tensor (layer d_model), "layer_indices", "scale", ...}`."""
    if found.get("norm_match") or found.get("position_indices") is not None:
        raise DialError(
            f"{path} has norm_match or position_indices, which steer in another way than adding "
            "one vector to all tokens: leave them out"
        )
    scale = found.get("scale", 1.0)
    if not isinstance(scale, int | float) or isinstance(scale, bool):
        raise DialError(f"{path}: scale must be a number, not {format_value(scale, 60)}")
    rows, layers = _packed(path, found["activations"]), found["layer_indices"]
    if rows.ndim == 3 and rows.shape[1] == 1:
        rows = rows[:, 0]
    if not isinstance(layers, list) or rows.ndim != 2 or len(rows) != len(layers):
        raise DialError(
            f"{path} has activations of shape {list(rows.shape)} for layer_indices "
            f"{format_value(layers, 60)}: expected layer d_model, and as many layers"
        )
    numbers = [_number(path, "a layer of layer_indices", n) for n in layers]
    return {n: row.double() * scale for n, row in zip(numbers, rows, strict=True)}


def _packed(path: str, held: object) -> Tensor:
    """vllm-lens's tensor in JSON: `{data: base64 of (zstd of) its bytes, dtype, original_dtype,
    shape, compression}`."""
    about = held if isinstance(held, Mapping) else {}
    shape: Any = about.get("shape")
    dtype, data = NUMPY_DTYPES.get(str(about.get("dtype"))), about.get("data")
    sized = isinstance(shape, list) and all(type(n) is int and 0 < n < 2**20 for n in shape)
    if not isinstance(data, str) or not sized or dtype is None or len(shape) > 3:
        raise DialError(
            f"{path}: activations hold {_keys(held)}: expected data, shape and a dtype of "
            f"{', '.join(NUMPY_DTYPES)}"
        )
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        raw = base64.b64decode(data, validate=True)
        if about.get("compression") == "zstd":
            raw = _inflated(path, raw, min(size, MOST_BYTES) + 1)
    except ValueError as error:
        raise DialError(f"{path}: its data is not base64: {one_line(error, 120)}") from error
    if len(raw) != size:
        raise DialError(f"{path}: its data has {len(raw)} bytes where shape {shape} has {size}")
    tensor = torch.from_numpy(np.frombuffer(raw, dtype=dtype).reshape(shape).copy())
    if dtype is not np.int16:
        return tensor
    return tensor.view(torch.bfloat16)


def _inflated(path: str, raw: bytes, most: int) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise DialError(f"{path} is compressed by zstd: pip install zstandard") from error
    try:
        return zstandard.ZstdDecompressor().stream_reader(raw).read(most)
    except zstandard.ZstdError as error:
        raise DialError(f"{path}: its data is not zstd: {one_line(error, 120)}") from error


# --------------------------------------------------------------------------------------------------
# Whether a direction is one of this model.


def check_fits(direction: Direction, model: TransformerBridge, any_model: bool = False) -> None:
    """Raises `DialError` if a direction is not as wide as the model's residual stream, or, unless
    `any_model`, if it says that it was learned on other weights. One that does not say is taken."""
    width, about = int(model.cfg.d_model), direction.provenance
    if len(direction.unit) != width:
        raise DialError(
            f"the direction is {len(direction.unit)} wide (learned on "
            f"{about.model or 'an unnamed model'}) and this model's residual "
            f"stream is {width}: use a direction of the same model"
        )
    who = identity(model)
    known = bool(about.revision and who.revision)
    same = about.revision == who.revision if known else about.model in ("", who.name)
    if not same and not any_model:
        raise DialError(
            f"the direction was learned on {about.model} (revision {about.revision or 'unknown'}) "
            f"and this is {who.name} (revision {who.revision or 'unknown'}): use a direction of "
            "this model, or --any-model"
        )


# --------------------------------------------------------------------------------------------------
# Plain tensors of other tools: `weights_only`, nothing else is unpickled.


def read_tensor(path: str | Path) -> Any:
    """What a .pt file holds, plain tensors only.

    Raises `DialError` for a file that is missing or that holds anything else.
    """
    if not Path(path).is_file():
        raise DialError(f"no file {str(path)!r}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise DialError(
            f"{path} is not a .pt file of plain tensors ({one_line(error, 120)}): nothing else is "
            "ever unpickled; save the tensor alone"
        ) from error
    for one in _each(found):
        if isinstance(one, Tensor) and (
            one.layout != torch.strided or one.is_meta or one.is_nested
        ):
            layout = "nested" if one.is_nested else one.layout
            kind = "numbers left out (meta)" if one.is_meta else f"the layout {layout}"
            raise DialError(f"{path} holds a tensor with {kind}: save it dense, with its numbers")
        if isinstance(one, Tensor):
            numbers = one.untyped_storage().nbytes() // one.element_size()
            if numbers < one.numel():
                raise DialError(
                    f"{path} holds a tensor of shape {list(one.shape)} made of {numbers} numbers: "
                    "save it with all of its own (.contiguous())"
                )
    return found


def _each(found: Any) -> Iterator[Any]:
    """Every value of mappings in mappings, or the one value."""
    if not isinstance(found, Mapping):
        yield found
        return
    for value in found.values():
        yield from _each(value)
