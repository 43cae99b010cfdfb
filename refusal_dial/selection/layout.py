"""Candidates on disk as the refusal_direction project (Arditi et al. 2024) writes and reads them.

    generate_directions/mean_diffs.pt                    pos layer d_model, float64
    select_direction/direction_evaluations.json          every candidate's measurements
    select_direction/direction_evaluations_filtered.json the kept ones, best first
    direction.pt, direction_metadata.json                the chosen one, raw; its pos and layer

Tensors are read with `weights_only`: nothing is unpickled but tensors. Candidates that were not
measured, because the rule discards their layer, are NaN in direction_evaluations.json, where that
project has numbers; its filter drops both.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusal_dial.directions import Direction, Provenance, from_vector
from refusal_dial.files import write_whole
from refusal_dial.selection.rules import MEASURES, evaluations_json, read_evaluations
from refusal_dial.types import DialError, one_line

MEAN_DIFFS = "generate_directions/mean_diffs.pt"
EVALUATIONS = "select_direction/direction_evaluations.json"
FILTERED = "select_direction/direction_evaluations_filtered.json"


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
    for one in found.values() if isinstance(found, Mapping) else [found]:
        if isinstance(one, Tensor) and (
            one.layout != torch.strided or one.is_meta or one.is_nested
        ):
            layout = "nested" if one.is_nested else one.layout
            kind = "numbers left out (meta)" if one.is_meta else f"the layout {layout}"
            raise DialError(f"{path} holds a tensor with {kind}: save it dense, with its numbers")
    return found


def read_published(folder: str | Path) -> tuple[pd.DataFrame, Tensor | None]:
    """(measured candidates, their raw vectors `pos layer d_model` where they are there)."""
    folder = Path(folder)
    candidates = read_evaluations(folder / EVALUATIONS)
    if not (folder / MEAN_DIFFS).is_file():
        return candidates, None
    raw = read_tensor(folder / MEAN_DIFFS)
    if not isinstance(raw, Tensor) or raw.ndim != 3:
        raise DialError(f"{folder / MEAN_DIFFS} holds no tensor of pos, layer and d_model")
    return candidates, raw


def candidate(
    raw: Float[Tensor, "pos layer d_model"], pos: int, layer: int, model: str = ""
) -> Direction:
    """One candidate of `mean_diffs.pt` as a direction; its raw vector is `norm * unit`.

    Raises `DialError` for a position or layer that is not in it.
    """
    if not (-raw.shape[0] <= pos < 0 <= layer < raw.shape[1]):
        raise DialError(f"position {pos}, layer {layer} is not in candidates of {tuple(raw.shape)}")
    about = Provenance(layer, "resid_pre", pos, method="mean_diff", model=model)
    return from_vector(raw[pos, layer], about)


def write_layout(
    folder: str | Path,
    raw: Float[Tensor, "pos layer d_model"],
    ranked: pd.DataFrame,
    pos: int,
    layer: int,
) -> None:
    """Write the project's tree below `folder`, whatever stood there before."""
    folder = Path(folder)
    n_pos, n_layers = raw.shape[:2]
    grid = pd.MultiIndex.from_product([range(-n_pos, 0), range(n_layers)], names=["pos", "layer"])
    columns = ["pos", "layer", *MEASURES]
    everything = ranked[columns].set_index(["pos", "layer"]).reindex(grid).reset_index()
    kept = ranked.loc[ranked["dropped"] == "", columns]
    _save(raw, folder / MEAN_DIFFS)
    write_whole(folder / EVALUATIONS, evaluations_json(everything))
    write_whole(folder / FILTERED, evaluations_json(kept))
    _save(raw[pos, layer], folder / "direction.pt")
    about = json.dumps({"pos": pos, "layer": layer}, indent=4)
    write_whole(folder / "direction_metadata.json", about)


def _save(tensor: Tensor, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(tensor.double().clone(), buffer)
    write_whole(path, buffer.getvalue())
