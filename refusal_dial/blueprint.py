"""What a model's config.json asks to be built, judged before anything is built of it.

    numbers >= vocab d + positions d + layers d (d_mlp + heads d_head)    d = the width
                         (0 where positions are rotated)

A slip of the pen, or malice, in one of these sizes would take the memory of the machine before
transformers found that the weights do not fit. So each size has a limit that no released model
comes near, and all together may not ask for more numbers than the weights on disk have bits. Only
JSON and the sizes of files are read. It does not know whether what is asked for makes sense: a
configuration that cannot be read is left to transformers, which says why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refusal_dial.checkpoint import missing_shards
from refusal_dial.types import DialError, shown

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
MLP_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads")
HEAD_WIDTHS = ("head_dim", "d_kv")
VOCABULARIES = ("vocab_size",)
POSITIONS = ("max_position_embeddings", "n_positions")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
LABELS = ("num_labels",)
LIMITS: dict[tuple[str, ...], tuple[int, int]] = {
    LAYERS: (1, 1000),
    WIDTHS: (1, 10**6),
    MLP_WIDTHS: (0, 10**7),
    HEADS: (0, 10**4),
    HEAD_WIDTHS: (0, 10**5),
    VOCABULARIES: (1, 10**8),
    POSITIONS: (-1, 10**10),  # -1: no limit, in some configurations
    EXPERTS: (0, 10**5),
    LABELS: (0, 10**6),
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
                        f"model {name!r}: its config.json has {key} {shown(n, 40)}, expected "
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

    a_layer = most(MLP_WIDTHS) + most(HEADS) * most(HEAD_WIDTHS)
    rotated = any(key.startswith("rope") or "rotary" in key for key in part)
    positions = 0 if rotated else max(most(POSITIONS), 0)
    return most(WIDTHS) * (most(VOCABULARIES) + positions + most(LAYERS) * a_layer)


def _sizes(part: dict[str, Any]) -> list[str]:
    keys = (*VOCABULARIES, *WIDTHS, *MLP_WIDTHS, *LAYERS, *HEADS, *HEAD_WIDTHS, *POSITIONS)
    return [f"{key} {part[key]}" for key in keys if _is_whole(part.get(key))]


def _is_whole(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool)
