"""A direction taken out of a model's weights, so that plain transformers loads a model without it.

    E <- E - (E r) r^T     the embedding's rows
    W <- W - r (r^T W)     what attention and the MLP write (W_O, W_down), biases too;
                           of a mixture, every expert's W_down

Then nothing that the model ever writes into its residual stream has a component along r, and its
logits are those of `hooks.ablate_everywhere` (Arditi et al. 2024). An unembedding that shares its
weights with the embedding is given its own copy first, which stays as it was.

A mixture of experts writes a sum of its experts, weighted by a router that only reads, so what no
expert can write their sum cannot. This holds where attention and MLP write into the stream as they
are. Where a norm stands between (Gemma 2, OLMo 2) it does not: such a model is refused, or found
out by `difference`, which compares the two on prompts. This module does not know what r does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import ALL, DialError, one_line, one_of
from refusal_dial.directions import Direction, interchange
from refusal_dial.hooks import HasUnit, ablate_everywhere, steer, unit_of
from refusal_dial.model.checkpoint import LOADING_INFO, check_whole
from refusal_dial.model.loading import check_layers, quantised_as
from refusal_dial.model.tokens import Tokens, last_logits, tokenize

EMBEDDINGS = ("embed", "pos_embed")

WRITERS = {"attn": "o", "mlp": "out"}

ROUTERS = ("gate", "router", "shared_expert_gate")

READ_BY_EXPERTS = ("gate_proj", "up_proj", "gate_up_proj", "gate_up_proj_bias")

WRITTEN_BY_EXPERTS = ("down_proj", "down_proj_bias")

NORMS = ("ln1_post", "ln2_post")

CHECK_TOLERANCE = 0.01
"""How far a logit may be off another tool's, in float32: a tenth of what steering should change."""


@torch.no_grad()
def orthogonalised(
    model: TransformerBridge, direction: HasUnit | Tensor, dtype: str = "auto"
) -> Any:
    """A fresh transformers model, loaded from where `model` came from, without the direction. It is
    computed in double precision and kept in `dtype`, or in the number format of the weights on
    disk (`auto`).

    Raises `DialError` for a direction of another width, or an architecture whose writers are not
    plain projections into the residual stream.
    """
    unit = unit_of(direction).double().cpu()
    _check_width(unit, model)
    plain = _plain(model, dtype)
    written = list(_written(model, plain))
    _untie(plain)
    for name, axis in written:
        held = plain.get_parameter(name)
        weight = held.double().movedim(axis, -1)
        taken = (weight @ unit)[..., None] * unit
        held.copy_((weight - taken).movedim(-1, axis).to(held.dtype))
    return plain


def _written(model: TransformerBridge, plain: Any) -> Iterator[tuple[str, int]]:
    """(name, axis along d_model) of every parameter of the transformers model that writes into the
    residual stream, biases too."""
    mapping = model.adapter.component_mapping
    block = mapping["blocks"]
    for name in EMBEDDINGS:
        if name in mapping:
            yield f"{mapping[name].name}.weight", -1
    for layer in range(int(model.cfg.n_layers)):
        for part, out in WRITERS.items():
            inner = block.submodules.get(part)
            below = getattr(inner, "submodules", {})
            path = f"{block.name}.{layer}.{getattr(inner, 'name', part)}"
            if inner is not None and out in below:
                yield from _projection(f"{path}.{below[out].name}", plain)
            elif inner is not None and part == "mlp":
                yield from _experts(path, plain)
            else:
                raise DialError(
                    f"{type(plain).__name__} has no single projection that its {part} writes with: "
                    "use hooks.ablate_everywhere"
                )


def _projection(path: str, plain: Any) -> Iterator[tuple[str, int]]:
    module = plain.get_submodule(path)
    yield f"{path}.weight", -1 if type(module).__name__ == "Conv1D" else 0
    if getattr(module, "bias", None) is not None:
        yield f"{path}.bias", -1


def _experts(path: str, plain: Any) -> Iterator[tuple[str, int]]:
    """What a mixture of experts writes with: `down_proj` of every routed and shared expert (the
    routed ones may be one tensor `expert d_model d_mlp`), and of a dense layer among mixtures. The
    router only reads."""
    mixture = plain.get_submodule(path)
    for name, parameter in mixture.named_parameters():
        owner, _, leaf = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")
        if name.split(".")[0] in ROUTERS or leaf in READ_BY_EXPERTS:
            continue
        if leaf not in WRITTEN_BY_EXPERTS:
            raise DialError(
                f"{type(plain).__name__}: what {path}.{name} does in its mixture of experts is not "
                "known, so it cannot be taken out of the weights: use hooks.ablate_everywhere"
            )
        rows = getattr(mixture.get_submodule(owner), "is_transposed", False)
        bias = parameter.ndim == 1 or leaf.endswith("_bias")
        yield f"{path}.{name}", -1 if bias or rows else -2


def _check_width(unit: Tensor, model: TransformerBridge) -> None:
    if len(unit) != int(model.cfg.d_model):
        raise DialError(
            f"the direction is {len(unit)} wide and this model's residual stream is "
            f"{int(model.cfg.d_model)}: use a direction of the same model"
        )


def _plain(model: TransformerBridge, dtype: str) -> Any:
    """The transformers model that `model` was made of, loaded again.

    Raises `DialError` where it normalises what its blocks write, or was loaded quantised."""
    from transformers import AutoModelForCausalLM

    normed = [
        name for name in NORMS if name in model.adapter.component_mapping["blocks"].submodules
    ]
    if normed:
        raise DialError(
            f"{type(model.original_model).__name__} normalises what attention and the MLP write "
            "before it enters the residual stream, so no weights do what ablation does: use the "
            "hooks (hooks.ablate_everywhere)"
        )
    if quantised := quantised_as(model):
        raise DialError(
            f"the model's weights are quantised ({quantised}), and what is taken out of them would "
            "be rounded back in: load it in float32, or use the hooks (hooks.ablate_everywhere)"
        )
    source = str(model.cfg.model_name)
    revision = getattr(model.original_model.config, "_commit_hash", None)
    folder = Path(source).is_dir()
    try:
        plain, report = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, revision=None if folder else revision, **LOADING_INFO
        )
        check_whole(source, report)
    except DialError:
        raise
    except Exception as error:  # transformers raises many kinds for files that are not its own
        raise DialError(f"{source!r} could not be loaded again: {one_line(error)}") from error
    return plain.eval()


def _untie(plain: Any) -> None:
    """The unembedding keeps the weights that it shared with the embedding, in a copy of its own."""
    head = plain.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in {id(c): c for c in (plain.config, plain.config.get_text_config())}.values():
        config.tie_word_embeddings = False


def save_model(plain: Any, tokenizer: Any, folder: str | Path) -> Path:
    """Write a model and its tokenizer as a hub folder, whole or not at all.

    Raises `DialError` if something stands there already.
    """
    with _draft(Path(folder)) as draft:
        plain.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    return Path(folder)


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` when it is whole."""
    if folder.exists():
        raise DialError(f"{str(folder)!r} is there already: choose another --out")
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@torch.no_grad()
def rank_one_lora(model: TransformerBridge, direction: HasUnit | Tensor) -> dict[str, Tensor]:
    """The same change as a LoRA adapter of rank 1, in PEFT's names: what is added to what a module
    gives out is `B A x`.

        A = r^T W, B = -r    of a projection        A = (E r)^T, B = -r    of an embedding

    Raises `DialError` for what `orthogonalised` refuses, and for projections with a bias, which no
    low-rank matrix takes away.
    """
    unit = unit_of(direction).double().cpu()
    _check_width(unit, model)
    plain = _plain(model, "float32")
    tensors = {}
    for parameter, _ in _written(model, plain):
        name, _, kind = parameter.rpartition(".")
        if kind != "weight":
            what = "has a bias" if kind == "bias" else f"keeps its experts in one tensor, {kind}"
            raise DialError(
                f"{name} of {type(plain).__name__} {what}, and a LoRA adapter changes none: "
                "export the whole model"
            )
        module = plain.get_submodule(name)
        weight, key = module.weight.double(), f"base_model.model.{name}"
        if isinstance(module, nn.Embedding):
            tensors[f"{key}.lora_embedding_A"] = (weight @ unit)[None].float()
            tensors[f"{key}.lora_embedding_B"] = -unit[:, None].float()
        else:
            tensors[f"{key}.lora_A.weight"] = (unit @ weight)[None].float()
            tensors[f"{key}.lora_B.weight"] = -unit[:, None].float()
    return tensors


def save_lora(tensors: dict[str, Tensor], base: str, folder: str | Path) -> Path:
    """Write an adapter of rank 1 as PEFT's folder, whole or not at all; `base` is the model's id.

    Raises `DialError` if something stands there already.
    """
    names = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in tensors}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": 1,
        "lora_alpha": 1,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(names),
    }
    with _draft(Path(folder)) as draft:
        save_file(tensors, draft / "adapter_model.safetensors", {"format": "pt"})
        text = json.dumps(config, indent=2) + "\n"
        (draft / "adapter_config.json").write_text(text, encoding="utf-8")
    return Path(folder)


@torch.no_grad()
def merged(model: TransformerBridge, adapter: str | Path) -> Any:
    """A fresh transformers model with the adapter of a folder added into its weights."""
    plain = _plain(model, "float32")
    _untie(plain)
    tensors = load_file(Path(adapter) / "adapter_model.safetensors")
    for name, a in tensors.items():
        if "_A" not in name:
            continue
        b = tensors[name.replace("_A", "_B")]
        module = plain.get_submodule(name.split(".lora_")[0].removeprefix("base_model.model."))
        module.weight += (b @ a).T if isinstance(module, nn.Embedding) else b @ a
    return plain


def difference(
    model: TransformerBridge,
    exported: TransformerBridge,
    direction: HasUnit | Tensor,
    tokens: Tokens,
) -> tuple[float, float]:
    """(largest difference in a logit between `model` under `ablate_everywhere` and `exported` as it
    is, largest logit), over these prompts at their last position."""
    hooks: Sequence[Any] = ablate_everywhere(direction, int(model.cfg.n_layers))
    hooked = last_logits(model, tokens.on(model), hooks).float().cpu()
    plain = last_logits(exported, tokens.on(exported)).float().cpu()
    return float((hooked - plain).abs().max()), float(hooked.abs().max())


# --------------------------------------------------------------------------------------------------
# A direction for another tool: what the tool has to be given, and what shows that it steered.
#
#     change = logits(prompt; alpha r added at every token) - logits(prompt)    at the last position


def written_as(
    direction: Direction, alpha: float, to: str, model: TransformerBridge, name: str
) -> bytes:
    """The bytes of a file of format `to` (see `directions.interchange`); `name` is what the tool
    calls the model.

    Raises `DialError` for a format that cannot say where this direction is added.
    """
    n_layers = int(model.cfg.n_layers)
    check_layers(model, [direction.provenance.layer])
    if to == "gguf":
        return interchange.to_gguf(direction, alpha, name)
    if to == "svec":
        return interchange.to_svec(direction, alpha, name, n_layers)
    if to == "lm-eval":
        return interchange.to_lm_eval(direction, alpha, blocks_of(model))
    if to == "vllm-lens":
        return interchange.to_vllm_lens(direction, alpha)
    if to == "persona":
        return interchange.to_persona(direction, alpha, n_layers)
    if to == "neuronpedia":
        return interchange.to_neuronpedia(direction, alpha, name)
    if to == "steering-vectors":
        return interchange.to_steering_vectors(direction, alpha)
    raise one_of(to, interchange.SUFFIX_OF, "format")


def blocks_of(model: TransformerBridge) -> str:
    """What the list of blocks is called within the base model: `layers`, or GPT-2's `h`."""
    path = str(model.adapter.component_mapping["blocks"].name)
    return path.removeprefix(f"{model.original_model.base_model_prefix}.")


def steering_check(
    model: TransformerBridge, direction: Direction, alpha: float, text: str, chat: bool = True
) -> dict[str, Any]:
    """One recorded prompt and what steering at every token does to its logits at the last position:
    the token whose logit moves most, before and after. A tool that adds nothing, or adds it one
    block off, does not show these numbers.

    Raises `DialError` where no logit moves: such a file could not be told from none.
    """
    at = direction.provenance
    tokens = tokenize(model, [text], chat=chat)
    hook = steer(direction, alpha, layer=at.layer, site=at.site, pos=ALL)
    before = last_logits(model, tokens.on(model))[0].double().cpu()
    after = last_logits(model, tokens.on(model), [hook])[0].double().cpu()
    token = int((after - before).abs().argmax())
    change = float(after[token] - before[token])
    if not abs(change) > CHECK_TOLERANCE:
        raise DialError(
            f"adding {alpha:g} at {at.site} {at.layer} moves no logit of {text!r} by more than "
            f"{CHECK_TOLERANCE}: raise --alpha"
        )
    return {
        "prompt": text,
        "token_ids": tokens.ids[0].tolist(),
        "token": token,
        "token_text": model.tokenizer.decode([token]),
        "logit_before": round(float(before[token]), 5),
        "logit_after": round(float(after[token]), 5),
        "change": round(change, 5),
        "tolerance": CHECK_TOLERANCE,
    }
