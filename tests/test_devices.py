"""A device and a number format are chosen by what there is, or refused in one line."""

from __future__ import annotations

import pytest
import torch

from refusal_dial.common import DialError
from refusal_dial.model.loading import device_of, dtype_of


def test_device_and_dtype_are_chosen_by_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_of("auto")[0] == "mps"
    assert dtype_of("auto", "mps")[0] == torch.float16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("auto")[0] == "cuda"
    assert dtype_of("auto", "cuda:1")[0] == torch.bfloat16
    assert dtype_of("auto", "cpu")[0] == torch.float32


@pytest.mark.parametrize("device", ["cdua", "", "cuda:x", "cuda:99", "cpu:x", "mps:7"])
def test_a_device_that_cannot_be_used(device):
    with pytest.raises(DialError, match=r"unknown device|is not usable here") as error:
        device_of(device)
    assert "\n" not in str(error.value)


def test_a_number_format_that_is_none():
    with pytest.raises(DialError, match="unknown dtype 'float8'"):
        dtype_of("float8", "cpu")
