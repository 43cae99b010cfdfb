"""Which device computes, and in which number format.

Knows what is in this machine. Does not know any model, nor whether one fits.
"""

from __future__ import annotations

import torch

from refusal_dial.types import DialError, one_line, one_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of(device: str) -> tuple[str, str]:
    """The device that a flag means, and why. Raises `DialError` for one that is not usable."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda", "a CUDA device is available"
        if torch.backends.mps.is_available():
            return "mps", "Apple MPS is available and CUDA is not"
        return "cpu", "neither CUDA nor MPS is available"
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise one_of(device, ["auto", "cpu", "cuda", "cuda:N", "mps"], "device")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DialError(
            f"device {device!r} is not usable here ({one_line(error)}): try --device auto"
        ) from error
    return device, "asked for"


def dtype_of(dtype: str, device: str) -> tuple[torch.dtype, str]:
    """The number format that a flag means on a device, and why."""
    if dtype == "auto":
        kind = device.split(":")[0]
        return {
            "cuda": (torch.bfloat16, "half precision on CUDA"),
            "mps": (torch.float16, "half precision on MPS"),
        }.get(kind, (torch.float32, "full precision on the CPU"))
    if dtype not in DTYPES:
        raise one_of(dtype, ["auto", *DTYPES], "dtype")
    return DTYPES[dtype], "asked for"
