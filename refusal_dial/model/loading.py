"""Load a model by name, on a device and in a number format, and record which one it is.

The model is TransformerLens's own `TransformerBridge`, not a wrapper: whatever works on it in a
notebook works on what `load_model` returns. A name is `embedded`, a local folder, a hub id, or a
GGUF file (see `gguf`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources.transformers import (
    determine_architecture_from_hf_config,
    get_hf_model_class_for_architecture,
)

from refusal_dial.common import SITES, DialError, hook_name, located, log, one_line, one_of
from refusal_dial.hub import cached, commit_of, hub_config, hub_reachable
from refusal_dial.model.checkpoint import (
    LOADING_INFO,
    check_blueprint,
    check_folder,
    check_numbers,
    check_tokens_fit,
    check_whole,
    folder_revision,
)
from refusal_dial.model.gguf import PACKAGED, dequantised, gguf_file, gguf_source

# --------------------------------------------------------------------------------------------------
# Which device computes, and in which number format.


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


QUANTIZED = {"8bit": 1.0, "4bit": 0.5, "int8": 1.0}
"""Bytes a weight: LLM.int8 and NF4 by bitsandbytes, weights alone in int8 by torchao. Activations
stay in the device's own format."""

QUANTIZER = {"8bit": "bitsandbytes", "4bit": "bitsandbytes", "int8": "torchao"}


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
    if dtype == "auto" or dtype in QUANTIZED:
        kind = device.split(":")[0]
        number, why = {
            "cuda": (torch.bfloat16, "half precision on CUDA"),
            "mps": (torch.float16, "half precision on MPS"),
        }.get(kind, (torch.float32, "full precision on the CPU"))
        return number, why if dtype == "auto" else f"{why}, under weights of {dtype}"
    if dtype not in DTYPES:
        raise one_of(dtype, ["auto", *DTYPES, *QUANTIZED], "dtype")
    return DTYPES[dtype], "asked for"


LARGE = 5e7
"""Parameters from which on a run's time is that of multiplying."""

FASTER = 1.3


def bfloat16_speed() -> float:
    """How many times as fast as float32 this CPU multiplies matrices of bfloat16: the shortest of
    five products each, of the size that a small model's MLP has (some 20 ms)."""
    times = {}
    for number in (torch.float32, torch.bfloat16):
        rows, weights = torch.ones(256, 512, dtype=number), torch.ones(512, 1024, dtype=number)
        took = []
        for _ in range(5):
            start = perf_counter()
            rows @ weights
            took.append(perf_counter() - start)
        times[number] = min(took)
    return times[torch.float32] / times[torch.bfloat16]


def speed_advice(speed: float, parameters: int) -> str:
    """What to say of bfloat16 where it is so many times as fast; empty where it does not matter."""
    if parameters < LARGE or speed < FASTER:
        return ""
    return (
        f"this CPU multiplies bfloat16 {speed:.1f} times as fast as float32: --dtype bfloat16 is "
        "faster, and its scores are rounded"
    )


# --------------------------------------------------------------------------------------------------
# Load a model by name, and say which one it is.
#
# The model is TransformerLens's own `TransformerBridge`, not a wrapper: whatever works on it in a
# notebook works on what `load_model` returns.


EMBEDDED = Path(__file__).parents[1] / "embedded" / "weights"

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class Identity:
    """Which model a run used, exactly enough to notice that another one is loaded."""

    name: str
    revision: str
    architecture: str
    n_layers: int
    d_model: int
    device: str
    dtype: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_model(
    name: str = "embedded",
    device: str = "auto",
    dtype: str = "auto",
    *,
    device_map: str | dict[str, str | int] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> TransformerBridge:
    """The model called `name`: `"embedded"`, a local folder, a Hugging Face hub id, a GGUF file
    (`FILE.gguf`, or `owner/name:FILE.gguf` of the hub), or `"smollm2"`, which a package carries.

    `device="auto"` takes CUDA, then Apple MPS, then the CPU. `dtype="auto"` is bfloat16 on CUDA,
    float16 on MPS and float32 on the CPU. Both choices are logged with their reason. Parameters are
    frozen; gradients with respect to activations and added vectors still work. `dtype="8bit"` and
    `"4bit"` keep the weights of linear layers in so few bits, by bitsandbytes.

    `device_map` splits a model that no one device holds, by accelerate: `"auto"` over what there
    is, or `{module: device}` with `"disk"` among the devices. TransformerLens takes maps of GPUs
    alone, or of CPU and disk alone. It takes the place of `device`.

    Raises `DialError` for a folder that is missing or holds no model, a hub id that is not found or
    cannot be reached, weights that are missing from the files, a tokenizer with tokens that the
    weights do not embed, a number of layers that no model has, an unknown device, dtype or device
    map, a map beside a device, or quantised weights where bitsandbytes is not installed.
    """
    if device_map is not None and device != "auto":
        raise DialError(f"--device {device} and --device-map {device_map}: give one of them")
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        raise one_of(device_map, DEVICE_MAPS, "device map")
    where, why = device_of(device)
    number, why_number = dtype_of(dtype, where)
    if dtype in QUANTIZED and find_spec(QUANTIZER[dtype]) is None:
        library = QUANTIZER[dtype]
        raise DialError(f"--dtype {dtype} needs {library}: pip install {library}")
    source = source_of(name, revision)
    commit = None if Path(source).is_dir() else _commit(source, revision)
    if device_map is not None:
        where, why = f"map {device_map}", "split by accelerate"
    log.info("device %s (%s), dtype %s (%s)", where, why, number, why_number)
    quiet_transformers()
    try:
        model = TransformerBridge.boot_transformers(
            source,
            device=None if device_map is not None else where,
            device_map=device_map,
            dtype=number,
            revision=commit or revision,
            trust_remote_code=trust_remote_code,
            model_class=_Whole(name, _quantisation(dtype, where, number), dtype, where),
        )
    except DialError:
        raise
    except Exception as error:
        reason = one_line(error)
        if "out of memory" in reason.lower():
            raise DialError(
                f"model {name!r} does not fit on {where}: try --dtype bfloat16 or --device-map auto"
            ) from error
        known = isinstance(error, OSError | ValueError | RuntimeError | SafetensorError)
        kind = "" if known else f"{type(error).__name__}: "
        raise DialError(f"model {name!r} could not be loaded: {kind}{reason}") from error
    if commit:
        model.original_model.config._commit_hash = commit  # transformers 5 keeps it no longer
    if str(model.cfg.device) == "meta":  # embeddings on disk, which are read on the CPU
        model.cfg.device = "cpu"
    if dtype == "auto" and where == "cpu":
        parameters = sum(p.numel() for p in model.original_model.parameters())
        if advice := speed_advice(bfloat16_speed() if parameters >= LARGE else 0.0, parameters):
            log.info("%s", advice)
    model.requires_grad_(False)
    model.eval()
    model.unembed.original_component.register_forward_pre_hook(_dense)
    if model.tokenizer is not None:
        check_tokens_fit(name, model.tokenizer, model.original_model)
        model.tokenizer.padding_side = "left"
        if model.tokenizer.pad_token_id is None:
            model.tokenizer.pad_token = model.tokenizer.eos_token
    return model


def _dense(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The last positions laid out one after another. Of a slice and frozen weights torch makes a
    batched product, and copies the unembedding once a prompt for it (in bfloat16 7 s for 64)."""
    return tuple(hidden.contiguous() for hidden in given)


@dataclass(frozen=True)
class _Whole:
    """What the bridge loads weights with, in place of a class of transformers: the class that the
    architecture asks for, and `check_whole` of what it reports."""

    name: str
    quantisation: Mapping[str, Any]
    dtype: str
    device: str

    def from_pretrained(self, source: str, **options: Any) -> Any:
        architecture = determine_architecture_from_hf_config(options["config"])
        kind = get_hf_model_class_for_architecture(architecture)
        options = {**options, **self.quantisation}
        if self.dtype in QUANTIZED:
            trusted = bool(options.get("trust_remote_code"))
            with torch.device("meta"):  # laid out, without weights
                empty = kind.from_config(options["config"], trust_remote_code=trusted)
            _check_linears(self.name, empty, self.dtype, self.device)
        model, report = kind.from_pretrained(source, **options, **LOADING_INFO)
        check_whole(self.name, report, exactly=self.name == "embedded")
        return model


def _quantisation(dtype: str, device: str, number: torch.dtype) -> dict[str, Any]:
    """What makes transformers quantise the weights that it loads; nothing for a plain dtype."""
    if dtype not in QUANTIZED:
        return {}
    from transformers import BitsAndBytesConfig, TorchAoConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for every cast
    asked: Any
    if dtype == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        asked = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        asked = BitsAndBytesConfig(
            load_in_8bit=dtype == "8bit",
            load_in_4bit=dtype == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=number,
        )
    placed = {} if device.startswith("map ") else {"device_map": {"": device}}
    return {"quantization_config": asked, **placed}


PACKED_ROWS, PACKED_COLUMNS = 32, 64
"""A CPU that multiplies in bfloat16 is given 4-bit weights in blocks of so many."""


def _packs_on(device: str) -> bool:
    """Whether bitsandbytes packs 4-bit weights in blocks there: a CPU with AVX512-BF16."""
    from bitsandbytes.functional import has_avx512bf16

    return device == "cpu" and bool(has_avx512bf16())


def _check_linears(name: str, empty: Any, dtype: str, device: str) -> None:
    """Raises `DialError` for a model without linear layers besides the unembedding, or with one
    whose weights cannot be packed; before anything large is loaded."""
    head = empty.get_output_embeddings()
    shapes = {
        path: tuple(module.weight.shape)
        for path, module in empty.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    if not shapes:
        raise DialError(
            f"model {name!r} has no linear layers that {QUANTIZER[dtype]} could quantise "
            f"({type(empty).__name__}): use --dtype bfloat16"
        )
    for path, (rows, columns) in shapes.items() if dtype == "4bit" and _packs_on(device) else ():
        if rows % PACKED_ROWS or columns % PACKED_COLUMNS:
            raise DialError(
                f"model {name!r} cannot be loaded in 4 bits on this CPU: {path} has weights of "
                f"{rows} x {columns}, and bitsandbytes packs whole blocks of {PACKED_ROWS} x "
                f"{PACKED_COLUMNS}; use --dtype int8, 8bit or bfloat16"
            )


def quantised_as(model: TransformerBridge) -> str:
    """How a model's weights were quantised: 8bit or 4bit by bitsandbytes, int8 by torchao, else the
    method's own name; empty for plain weights."""
    found = getattr(model.original_model.config, "quantization_config", None)
    if found is None:
        return ""
    told = found if isinstance(found, dict) else found.to_dict()
    bits = [bits for bits in QUANTIZED if told.get(f"load_in_{bits}")]
    if "Int8WeightOnlyConfig" in str(told.get("quant_type")):
        return "int8"
    return bits[0] if bits else str(told.get("quant_method", "unknown")).lower()


def quiet_transformers() -> None:
    """No advice and no bar of loading weights on the terminal; errors still come through."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def source_of(name: str, revision: str | None = None) -> str:
    """The folder or hub id behind a name, checked without loading anything. Where the hub cannot be
    reached, a hub id's folder is that of this revision in the cache."""
    if name == "embedded":
        if not (EMBEDDED / "config.json").is_file():
            raise DialError(
                f"the embedded model is missing from {EMBEDDED}: "
                "make it with python scripts/train_embedded_model.py"
            )
        check_numbers(EMBEDDED, name)
        return str(EMBEDDED)
    file = gguf_file(name, revision)
    if file is not None:
        return str(dequantised(file, name if name in PACKAGED or ":" in name else str(file)))
    folder = located(name or ".")
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise DialError(f"folder {name!r} holds no model: config.json is not in it")
        check_folder(folder, name)
        return str(folder.resolve())
    if name and folder.exists():
        raise DialError(
            f"{name!r} is a file: give the model's folder, a .gguf, a hub id, or 'embedded'"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+|[\w-][\w.-]*", name) or name.startswith("."):
        raise DialError(
            f"no folder {name!r}: give 'embedded', an existing folder, or a hub id "
            "such as Qwen/Qwen2.5-0.5B-Instruct"
        )
    if hub_reachable():
        return name
    here = cached(name, revision)
    if here is None:
        which = f" at revision {revision!r}" if revision else ""
        raise DialError(
            f"model {name!r}{which} is neither a folder here nor in the local hub cache, and the "
            "hub cannot be reached: connect, give a folder, or use --model embedded"
        )
    if (here / "config.json").is_file():
        check_folder(here, name)
    return str(here)


def _commit(name: str, revision: str | None) -> str | None:
    """The commit of a hub model that a revision (none: the main branch) means now, of which
    config.json is fetched and judged before anything else is."""
    config = hub_config(name, revision)
    if config is None:
        return None
    check_blueprint(config, name)
    found = commit_of(config.parent)
    return found[1] if found else None


def identity(model: TransformerBridge) -> Identity:
    """Name, revision and shape of a loaded model.

    The revision is the hub's commit where there is one, and the file's hash of a GGUF; for a
    folder, a hash over all of its weights, configuration, tokenizer and chat templates (see
    `checkpoint`).
    """
    source = str(model.cfg.model_name)
    folder = Path(source)
    commit = getattr(model.original_model.config, "_commit_hash", None)
    name, revision = ("embedded" if folder == EMBEDDED else source), str(commit or "")
    if folder.is_dir():
        known = commit_of(folder) or gguf_source(folder)
        name, revision = known or (name, folder_revision(folder))
    return Identity(
        name=name,
        revision=revision,
        architecture=type(model.original_model).__name__,
        n_layers=int(model.cfg.n_layers),
        d_model=int(model.cfg.d_model),
        device=str(model.cfg.device),
        dtype=quantised_as(model)
        or str(next(model.original_model.parameters()).dtype).removeprefix("torch."),
    )


def check_layers(model: TransformerBridge, layers: Iterable[int]) -> tuple[int, ...]:
    """The layers, if the model has them all. Raises `DialError` with the valid range."""
    layers, n = tuple(layers), int(model.cfg.n_layers)
    for layer in layers:
        if not 0 <= layer < n:
            raise DialError(f"layer {layer} is out of range: this model has layers 0 to {n - 1}")
    return layers


def mixture_layers(model: TransformerBridge) -> tuple[int, ...]:
    """The layers whose MLP is a mixture of experts: TransformerLens knows no neurons there, and
    shows the block's output as `mlp_post`."""
    return tuple(
        layer
        for layer, block in enumerate(model.blocks)
        if "mlp" in getattr(block, "submodules", {})
        and model.hook_dict.get(hook_name("mlp_post", layer)) is block.mlp.hook_out
    )


def sites_in(model: TransformerBridge) -> tuple[str, ...]:
    """The sites that this architecture has: no `mlp_post` where a layer is a mixture of experts."""
    lacking = {"mlp_post"} if mixture_layers(model) else set()
    return tuple(s for s in SITES if hook_name(s, 0) in model.hook_dict and s not in lacking)


def check_site(model: TransformerBridge, site: str) -> str:
    """The site, if this architecture has it. Raises `DialError` with those it has."""
    here = sites_in(model)
    if site not in SITES:
        raise one_of(site, SITES, "site")
    if site not in here:
        raise DialError(
            f"{type(model.original_model).__name__} has no site {site!r}: it has {', '.join(here)}"
        )
    return site
