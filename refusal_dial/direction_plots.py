"""Figures of directions themselves: how long they were at each layer, and how alike layers are.

    cosine(i, j) = u_i . u_j,   u unit vectors

A cosine near 1 between neighbouring layers says that the residual stream carries one direction on;
in d dimensions two random directions have a cosine of about ±1 / sqrt(d). No files, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from refusal_dial.theme import BLUE, GREY, add_line, styled
from refusal_dial.types import DialError

Vectors = Mapping[int, NDArray[np.float64]]


def norms_by_layer(
    norms: Mapping[int, float], title: str, residual: Mapping[int, float] | None = None
) -> go.Figure:
    """The norm of the raw difference in means at each layer, in residual-stream units; beside it,
    where known, the mean norm of the activations there. Raises `DialError` without a direction."""
    if not norms:
        raise DialError("no direction to draw: give a run folder that holds direction*.safetensors")
    figure = go.Figure()
    for name, values, colour in (
        ("direction (raw difference)", norms, BLUE),
        ("mean activation", residual or {}, GREY),
    ):
        layers = sorted(values)
        if layers:
            add_line(figure, layers, [values[n] for n in layers], colour, name, {}, True)
    figure.update_xaxes(title_text="layer", dtick=max(1, len(norms) // 12))
    figure.update_yaxes(title_text="norm (residual-stream units)", rangemode="tozero")
    return styled(figure, title, height=440, width=760)


def cosines(units: Vectors, title: str) -> go.Figure:
    """The cosine between every two layers' directions. Raises `DialError` for fewer than two, or
    for directions of different widths."""
    layers = sorted(units)
    if len(layers) < 2:
        raise DialError(
            f"cosines between layers take two or more directions, and here is {len(layers)}: "
            "run the experiment with --layer all"
        )
    widths = {len(units[n]) for n in layers}
    if len(widths) > 1:
        raise DialError(f"directions of different models: widths {sorted(widths)}")
    table = cosine_matrix([units[n] for n in layers])
    figure = go.Figure(
        go.Heatmap(
            z=table,
            x=layers,
            y=layers,
            colorscale="RdBu_r",
            zmid=0,
            zmin=-1,
            zmax=1,
            colorbar={"title": {"text": "cosine"}},
            hovertemplate="layers %{x} and %{y}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="layer", type="category")
    figure.update_yaxes(title_text="layer", type="category", scaleanchor="x", autorange="reversed")
    return styled(figure, title, height=640, width=720)


def cosine_matrix(vectors: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """`u_i . u_j` for all pairs, each vector divided by its norm first."""
    stacked = np.stack(vectors).astype(float)
    unit = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
    return np.clip(unit @ unit.T, -1, 1)
