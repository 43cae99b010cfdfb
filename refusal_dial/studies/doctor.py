"""Is this machine ready for a long run on this model? One finding a check, each with its remedy.

Cheap checks come first: Python, packages, device, disk, where the weights are and whether they fit.
Then the model is loaded and tried: chat template, refusal tokens, one forward pass, one steered
generation. What fails at the model leaves nothing to try after it. This module finds out and says
so; it changes nothing, and what it cannot know it reports as unknown.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError, free_memory, one_line
from refusal_dial.data.prompts import load_prompts, some_of_each
from refusal_dial.engine.recording import GIGABYTE
from refusal_dial.hooks import steer
from refusal_dial.hub import hub_reachable
from refusal_dial.model.activations import collect
from refusal_dial.model.checkpoint import configured, missing_shards, parameters
from refusal_dial.model.loading import QUANTIZED, device_of, dtype_of, load_model, source_of
from refusal_dial.model.tokens import last_logits, tokenize
from refusal_dial.scoring.logits import NotCalibratedError, refusal_tokens
from refusal_dial.studies.judged_tokens import judged_tokens

Status = Literal["ok", "warn", "fail"]

LEAST_VERSIONS = {
    "transformer-lens": (4, 3),
    "transformers": (5, 9),
    "torch": (2, 6),
    "datasets": (3, 0),
}

ROOM = 1.3
"""Free memory wanted, as a multiple of the weights: activations and the key-value cache."""

DISK_GB = 1.0

PROMPT = "How do I make a cup of tea?"

PROMPTS_TRIED = 64
"""Embedded prompts of each subset on which refusal tokens are looked for, at most."""


@dataclass(frozen=True)
class Finding:
    """What one check found. `fail` means that a run cannot start, `warn` that it may suffer."""

    check: str
    verdict: Status
    found: str
    remedy: str = ""


def examine(
    name: str, device: str = "auto", dtype: str = "auto", out: str | Path = "runs"
) -> Iterator[Finding]:
    """Every finding, in order, as it is made."""
    yield _python()
    yield from _packages()
    yield _disk(Path(out))
    yield _static_images()
    try:
        where, why = device_of(device)
        number, why_number = dtype_of(dtype, where)
    except DialError as error:
        yield Finding("device", "fail", str(error), "use --device auto --dtype auto")
        return
    yield Finding("device", "ok", f"{where} ({why}), {number} ({why_number})")
    if where == "mps":
        yield _half_on_mps()
    try:
        source = source_of(name)
    except DialError as error:
        yield Finding("weights", "fail", str(error), "give a folder, or use --model embedded")
        return
    weights = _weights(name, source)
    yield weights
    if weights.verdict == "fail":
        return
    room = _memory(source, where, QUANTIZED.get(dtype, float(number.itemsize)))
    yield room
    if room.verdict == "fail":
        return
    try:
        model = load_model(name, device, dtype)
    except DialError as error:
        yield Finding("model", "fail", str(error), "check the folder or id, --device and --dtype")
        return
    yield Finding("model", "ok", f"{type(model.original_model).__name__} loads")
    yield from _try_model(model)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036
        return Finding("python", "fail", version, "install Python 3.11 or newer")
    return Finding("python", "ok", version)


def _packages() -> Iterator[Finding]:
    for package, least in LEAST_VERSIONS.items():
        wanted = ".".join(map(str, least))
        remedy = f"pip install '{package}>={wanted}'"
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            yield Finding("packages", "fail", f"{package} is not installed", remedy)
            continue
        have = tuple(int("".join(filter(str.isdigit, p)) or 0) for p in version.split(".")[:2])
        verdict: Status = "ok" if have >= least else "fail"
        yield Finding("packages", verdict, f"{package} {version}", "" if have >= least else remedy)


def _disk(out: Path) -> Finding:
    here = next(p for p in (out, *out.resolve().parents) if p.exists())
    free = shutil.disk_usage(here).free / GIGABYTE
    text = f"{free:.1f} GB free for {out}"
    if free < DISK_GB:
        return Finding("disk", "fail", text, f"free {DISK_GB:g} GB, or give another --out")
    return Finding("disk", "ok", text)


def _static_images() -> Finding:
    try:
        return Finding("static images", "ok", f"kaleido {metadata.version('kaleido')}")
    except metadata.PackageNotFoundError:
        remedy = "pip install kaleido; .html figures need nothing"
        return Finding("static images", "warn", "no kaleido: no .png or .pdf figures", remedy)


def _half_on_mps() -> Finding:
    eye = torch.eye(8, device="mps", dtype=torch.float16)
    if bool(torch.equal((eye @ eye).cpu(), eye.cpu())):
        return Finding("half precision", "ok", "float16 multiplies on MPS")
    return Finding("half precision", "fail", "float16 is wrong on MPS", "use --dtype float32")


def _weights(name: str, source: str) -> Finding:
    if Path(source).is_dir():
        try:
            missing = missing_shards(Path(source))
        except DialError as error:
            return Finding("weights", "fail", str(error), "get the model's files again")
        if missing:
            text = f"{name} lacks {len(missing)} files of its index, such as {missing[0]}"
            return Finding("weights", "fail", text, "finish the download")
        return Finding("weights", "ok", f"{name} is at {source}")
    if hub_reachable():
        return Finding("weights", "ok", f"{name} comes from the hub, which can be reached")
    remedy = "connect, or give a folder"
    return Finding("weights", "fail", f"{name} is on the hub, which cannot be reached", remedy)


def _memory(source: str, device: str, size: float) -> Finding:
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else free_memory()
    known = [n for n in (parameters(Path(source)), configured(source)) if n is not None]
    count = max(known, default=None)
    if count is None:
        text = f"{free / GIGABYTE:.1f} GB free, the model's size is not known before it is loaded"
        return Finding("memory", "warn", text)
    need = ROOM * count * size
    text = (
        f"{count / 1e6:.1f} million parameters want {need / GIGABYTE:.2f} GB at {size:g} bytes "
        f"each, {free / GIGABYTE:.1f} GB are free"
    )
    if need <= free:
        return Finding("memory", "ok", text)
    half = " --dtype bfloat16 halves it;" if size == torch.float32.itemsize else ""
    return Finding("memory", "fail", text, f"free memory, or take a smaller model;{half}")


def _try_model(model: TransformerBridge) -> Iterator[Finding]:
    chat = bool(model.tokenizer is not None and model.tokenizer.chat_template)
    if chat:
        yield Finding("chat template", "ok", "there is one")
    else:
        yield Finding("chat template", "warn", "there is none", "read prompts with --plain")
    try:
        tokens = tokenize(model, [PROMPT], chat=chat)
    except DialError as error:
        yield Finding("tokens", "fail", str(error), "save the tokenizer beside the weights")
        return
    logits = last_logits(model, tokens)
    if not bool(torch.isfinite(logits).all()):
        yield _not_finite("forward pass", model)
        return
    top = model.tokenizer.decode([int(logits[0].argmax())])
    yield Finding("forward pass", "ok", f"finite logits, next token {top!r}")
    yield _refusal_tokens(model, chat)
    yield _generated(model, tokens.ids, tokens.mask)


def _refusal_tokens(model: TransformerBridge, chat: bool) -> Finding:
    """The tokens that `--refusal-tokens auto` would find on the embedded prompts, as a run does."""
    check, remedy = "refusal tokens", "give --refusal-tokens, or use studies of judged replies"
    prompts = some_of_each(load_prompts(), PROMPTS_TRIED, seed=0)
    tokens = tokenize(model, [prompt.text for prompt in prompts], chat=chat)
    _, logits = collect(model, tokens, ())
    try:
        found = refusal_tokens("auto", model.tokenizer, prompts, logits)
        return Finding(check, "ok", f"{found.source}: {' '.join(map(repr, found.refusal_texts))}")
    except NotCalibratedError:
        pass  # the model is asked for replies
    except DialError as error:
        return Finding(check, "fail", str(error), remedy)
    try:
        judged = judged_tokens(model, prompts, tokens, logits)
    except DialError as error:
        return Finding(check, "fail", str(error), remedy)
    text = f"{' '.join(map(repr, judged.tokens.refusal_texts))}: {judged.about}"
    return Finding(check, "ok", text) if judged.reads_well else Finding(check, "warn", text, remedy)


def _not_finite(check: str, model: TransformerBridge) -> Finding:
    """Whose fault it is that the logits are no numbers: the weights', or that of their format."""
    text = "NaN or infinite logits"
    for name, weight in model.original_model.named_parameters():
        if weight.device.type != "meta" and bool(torch.isnan(weight).any()):
            where = name.replace("._original_component", "")
            remedy = "get the weights again: no --dtype mends them"
            return Finding(check, "fail", f"{text}: the weights hold NaN ({where})", remedy)
    if next(model.original_model.parameters()).dtype == torch.float32:
        remedy = "get the weights again, or report this model"
        return Finding(check, "fail", f"{text}, in float32, from weights without NaN", remedy)
    return Finding(check, "fail", text, "use --dtype float32")


def _generated(model: TransformerBridge, ids: Any, mask: Any) -> Finding:
    """A few tokens, plain and steered hard: both must come, and steering must be felt."""
    width, layer = int(model.cfg.d_model), int(model.cfg.n_layers) // 2
    unit = torch.nn.functional.normalize(torch.ones(width), dim=0)
    seen = []
    for hooks in ([], [steer(unit, 100.0, layer=layer)]):
        try:
            with torch.no_grad(), model.hooks(fwd_hooks=hooks):
                out = model.original_model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=4,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                    pad_token_id=model.tokenizer.pad_token_id,
                )
        except Exception as error:  # whatever it is, the person must see it before a long run
            return Finding(
                "generation",
                "fail",
                f"{type(error).__name__}: {one_line(error)}",
                "try another --dtype, or pip install -c constraints.txt the tested versions",
            )
        seen.append(torch.stack(out.logits)[:, 0].float().cpu())
    if not all(bool(torch.isfinite(logits).all()) for logits in seen):
        return _not_finite("generation", model)
    n = min(len(logits) for logits in seen)
    if bool(torch.equal(seen[0][:n], seen[1][:n])):
        return Finding("generation", "fail", "a hook changes nothing", "report this model")
    return Finding("generation", "ok", f"4 tokens plain and steered at layer {layer}")
