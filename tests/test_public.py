"""The public surface: what a user imports, as a user imports it."""

from __future__ import annotations

import importlib

import pytest
import torch

import refusal_dial


def test_the_documented_imports_work():
    from refusal_dial import ablate, clamp, directions, load_model, patch, steer, tokenize
    from refusal_dial.engine import score_grid
    from refusal_dial.generate import generate
    from refusal_dial.run import find_run

    for one in (load_model, steer, ablate, clamp, patch, tokenize, find_run, generate, score_grid):
        assert callable(one)
    for name in ("mean_diff", "caa", "pca", "probe", "top_bottom", "from_vector", "load", "save"):
        assert callable(getattr(directions, name))
    name, function = steer(torch.eye(4)[0], 8.0, layer=20, pos=-1)
    assert name == "blocks.20.hook_resid_pre"
    assert callable(function)


def test_dir_lists_the_public_names_and_each_is_there():
    names = dir(refusal_dial)
    assert set(refusal_dial.__all__) <= set(names)
    assert names == sorted(names)
    for name in names:
        found = getattr(refusal_dial, name, None) or importlib.import_module(f"refusal_dial.{name}")
        assert found is not None


@pytest.mark.parametrize("width", [4, 4096])
def test_a_direction_is_one_line_to_read(width):
    from refusal_dial.directions import Provenance, from_vector

    at = Provenance(20, "resid_pre", -1, model="some/model", method="top_bottom")
    text = repr(from_vector(3 * torch.eye(width)[0], at))
    assert text == (
        f"Direction(top_bottom, layer 20 resid_pre pos -1, d_model {width}, norm 3, some/model)"
    )
