"""Directions: learned from two groups of activations, set beside controls, read from any file."""

from refusal_dial.directions.learning import (
    Direction,
    Provenance,
    caa,
    from_vector,
    load,
    mean_diff,
    pca,
    probe,
    save,
    top_bottom,
)

__all__ = [
    "Direction",
    "Provenance",
    "caa",
    "from_vector",
    "load",
    "mean_diff",
    "pca",
    "probe",
    "save",
    "top_bottom",
]
