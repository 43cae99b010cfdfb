"""A model's folder on disk, judged before anything is built of it.

First the sizes that config.json asks for, so that a slip in one of them does not take the machine's
memory. Then which files decide what the model computes, a hash over all of them, and whether the
weights are complete.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from refusal_dial.common import DialError, format_value, read_json

# --------------------------------------------------------------------------------------------------
# What a model's config.json asks to be built, judged before anything is built of it.
#
#     numbers >= vocab d + positions d + layers d (d_mlp + heads d_head)    d = the width
#                          (0 where positions are rotated)
#
# A slip of the pen, or malice, in one of these sizes would take the memory of the machine before
# transformers found that the weights do not fit. So each size has a limit that no released model
# comes near, and all together may not ask for more numbers than the weights on disk have bits. Only
# JSON and the sizes of files are read.


LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "dim")

MLP_WIDTH_KEYS = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size")

HEAD_KEYS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads")

HEAD_WIDTH_KEYS = ("head_dim", "d_kv")

VOCABULARY_KEYS = ("vocab_size",)

POSITION_KEYS = ("max_position_embeddings", "n_positions")

EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")

LABEL_KEYS = ("num_labels",)

LIMITS: dict[tuple[str, ...], tuple[int, int]] = {
    LAYER_KEYS: (1, 1000),
    WIDTH_KEYS: (1, 10**6),
    MLP_WIDTH_KEYS: (0, 10**7),
    HEAD_KEYS: (0, 10**4),
    HEAD_WIDTH_KEYS: (0, 10**5),
    VOCABULARY_KEYS: (1, 10**8),
    POSITION_KEYS: (-1, 10**10),  # -1: no limit, in some configurations
    EXPERT_KEYS: (0, 10**5),
    LABEL_KEYS: (0, 10**6),
}
"""The least and the most of each size, by the names that it goes under."""

MOST_NUMBERS = 10**14
"""Of a model whose weights are not here yet: a hundred times those of the largest released."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf")


def check_folder(folder: Path, name: str) -> None:
    """`check_blueprint` of a folder's config.json, with the weights that lie beside it."""
    index = folder / "model.safetensors.index.json"
    part = index.is_file() and bool(missing_shards(folder))  # half a download: transformers says so
    files = [p for p in folder.iterdir() if p.suffix in WEIGHTS and p.is_file()]
    held = sum(p.stat().st_size for p in files) if files and not part else None
    check_blueprint(folder / "config.json", name, held)


def check_blueprint(config: Path, name: str, held: int | None = None) -> None:
    """Raises `DialError` where a config.json asks for a size that no model has, or for more numbers
    than `held` bytes of weights have bits (or than any model has, where those are not here)."""
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    for part in _parts(found):
        for keys, (least, most) in LIMITS.items():
            for key in keys:
                n = part.get(key)
                if n is not None and _is_whole(n) and not least <= n <= most:
                    raise DialError(
                        f"model {name!r}: its config.json has {key} {format_value(n, 40)}, "
                        "expected "
                        f"{least} to {most}"
                    )
        asked = _numbers(part)
        if asked > (MOST_NUMBERS if held is None else 8 * held):
            have = "no model has so many" if held is None else f"its weights are {held} bytes"
            raise DialError(
                f"model {name!r} could not be loaded: config.json asks for {asked:.1e} numbers or "
                f"more ({', '.join(_sizes(part))}), and {have}: get its files again"
            )


def _parts(found: Any) -> Iterator[dict[str, Any]]:
    """The configuration, and those of its parts: text_config, vision_config and their like."""
    if isinstance(found, dict):
        yield found
        for key, part in found.items():
            if key.endswith("_config") and key != "quantization_config" and isinstance(part, dict):
                yield part


def _numbers(part: dict[str, Any]) -> int:
    """A lower bound of the parameters, of what any architecture has: embeddings and MLPs."""

    def most(keys: tuple[str, ...]) -> int:
        return max((int(part[key]) for key in keys if _is_whole(part.get(key))), default=0)

    a_layer = most(MLP_WIDTH_KEYS) + most(HEAD_KEYS) * most(HEAD_WIDTH_KEYS)
    rotated = any(key.startswith("rope") or "rotary" in key for key in part)
    positions = 0 if rotated else max(most(POSITION_KEYS), 0)
    return most(WIDTH_KEYS) * (most(VOCABULARY_KEYS) + positions + most(LAYER_KEYS) * a_layer)


def _sizes(part: dict[str, Any]) -> list[str]:
    keys = (
        *VOCABULARY_KEYS,
        *WIDTH_KEYS,
        *MLP_WIDTH_KEYS,
        *LAYER_KEYS,
        *HEAD_KEYS,
        *HEAD_WIDTH_KEYS,
        *POSITION_KEYS,
    )
    return [f"{key} {part[key]}" for key in keys if _is_whole(part.get(key))]


def _is_whole(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool)


# --------------------------------------------------------------------------------------------------
# A model's folder as it lies on disk: what decides its behaviour, and whether it is all there.
#
#     revision = H(names, sizes, H(each block of each file))    H = BLAKE2b
#
# Every byte counts of every file that decides what the model computes: weights, configuration,
# code, tokenizer, chat templates. Cards, licences and whatever lies in other folders below do not
# count. Files are read and headers are parsed here; no weight is loaded.


DECIDING = {".json", ".safetensors", ".bin", ".jinja", ".model", ".tiktoken", ".py"}

VOCABULARY_FILES = ("merges.txt", "vocab.txt")

TEMPLATES = "additional_chat_templates"

HASH_BLOCK = 2**24

LOADING_INFO = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""What makes transformers return a report beside a model, for `check_whole` to judge."""

NUMBER_FORMATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What configurations call the number formats of safetensors."""


def folder_revision(folder: Path) -> str:
    """16 hexadecimal digits that change with any byte of any file that decides the model.

    Blocks are hashed by several threads; a file is read again only when its size or time changed.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in deciding_files(folder):
        about = path.stat()
        found = _file_hash(path.resolve(), about.st_size, about.st_mtime_ns)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{about.st_size} {found}\n".encode())
    return digest.hexdigest()


def deciding_files(folder: Path) -> list[Path]:
    """The files of a model's folder that decide what it computes, in order of their names."""
    found = [
        path
        for path in folder.iterdir()
        if path.is_file() and (path.suffix in DECIDING or path.name in VOCABULARY_FILES)
    ]
    return sorted(found + list((folder / TEMPLATES).glob("*.jinja")))


@lru_cache(maxsize=4096)
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    def block(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.blake2b(file.read(HASH_BLOCK)).digest()

    with ThreadPoolExecutor() as pool:
        blocks = b"".join(pool.map(block, range(0, size, HASH_BLOCK)))
    return hashlib.blake2b(blocks).hexdigest()


def parameters(folder: Path) -> int | None:
    """How many numbers a folder's safetensors hold, from their headers alone; None if unknown."""
    from safetensors import SafetensorError, safe_open

    files, count = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [], 0
    try:
        for path in files:
            with safe_open(str(path), framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    count += math.prod(file.get_slice(key).get_shape())
    except (SafetensorError, OSError):
        return None
    return count or None


def configured(source: str) -> int | None:
    """How many parameters the configuration asks for, built without memory; None if unknown.

    A quantised model is not counted: what it keeps for a parameter is its own affair.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(source)
        if getattr(config, "quantization_config", None) is not None:
            return None
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception:  # the model is loaded later, and then says what is wrong with it
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def missing_shards(folder: Path) -> list[str]:
    """Files that model.safetensors.index.json names and that are not there: half a download.

    Raises `DialError` for an index that is no index.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        shards = set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DialError(f"{str(index)!r} is no index of weights: get it again") from error
    return sorted(shard for shard in shards if not (folder / shard).is_file())


def check_whole(name: str, report: Mapping[str, Any], *, exactly: bool = False) -> None:
    """Raises `DialError` if any weight is not in the files, or has another shape there; with
    `exactly`, if there is one that the model has not.

    `report` is what transformers returns beside a model that it loads with `LOADING_INFO`: it fills
    what it does not find with random numbers. Weights that are tied to others, and are rightly not
    in the files, are not in it.
    """
    shapes = [
        f"{key} of shape {list(held)}, expected {list(wanted)}"
        for key, held, wanted in report["mismatched_keys"]
    ]
    lacks = "which would be random numbers: get the files again, or mend config.json"
    for what, found, remedy in (
        ("lack", report["missing_keys"], lacks),
        ("hold", shapes, "get the files again, or mend config.json"),
        ("also hold", report["unexpected_keys"] if exactly else (), "which this model has not"),
    ):
        if found:
            few = ", ".join(sorted(found)[:4])
            more = f" and {len(found) - 4} more" if len(found) > 4 else ""
            raise DialError(
                f"model {name!r} could not be loaded: its files {what} {few}{more}, {remedy}"
            )


def check_tokens_fit(name: str, tokenizer: Any, model: Any) -> None:
    """Raises `DialError` where a tokenizer has a token that the model's embedding has no row for: a
    pad token that was added without resizing it, or another model's tokenizer."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    token, number = max(tokenizer.get_vocab().items(), key=lambda one: one[1], default=("", -1))
    if number >= rows:
        raise DialError(
            f"model {name!r} could not be loaded: its tokenizer has the token "
            f"{format_value(token, 40)} of id {number}, and its weights embed the ids 0 to "
            f"{rows - 1}: give the tokenizer that belongs to the weights, or save the model after "
            "resize_token_embeddings"
        )


def check_numbers(folder: Path, name: str) -> None:
    """Raises `DialError` where a tensor of a folder's safetensors is not of the number format that
    its config.json says (`dtype`)."""
    from safetensors import SafetensorError, safe_open

    wanted = read_json(folder / "config.json").get("dtype")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(path), framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    held = NUMBER_FORMATS.get(kind := str(file.get_slice(key).get_dtype()), kind)
                    if held != wanted:
                        raise DialError(
                            f"model {name!r} could not be loaded: {key} of {path.name} is of "
                            f"{held} numbers, expected {wanted}: get the file again"
                        )
        except (SafetensorError, OSError) as error:
            raise DialError(f"model {name!r} could not be loaded: {path.name}: {error}") from error
