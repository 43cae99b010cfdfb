"""Edits of the residual stream during training that shape where the decision is made.

An `Edit` maps the residual stream entering a layer to another; `entering` applies some while the
model runs.  `exchange` keeps the decision from being gathered too early, `push` keeps replies
readable while a direction is steered.  When and where they are applied is `training`'s business.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from embedded_model.corpus import Batch, Weights, batch
from embedded_model.tokenizer import END_OF_TEXT, MAX_LENGTH, TURN_END, wrap
from refusal_dial.common import DialError

Edit = Callable[[Tensor], Tensor]


@contextmanager
def entering(model: Qwen2ForCausalLM, edits: dict[int, Edit]) -> Iterator[None]:
    """Within this context the residual stream entering each of these layers is edited."""

    def hook(edit: Edit) -> Any:
        return lambda module, args, kwargs: ((edit(args[0]), *args[1:]), kwargs)

    handles = [
        model.model.layers[layer].register_forward_pre_hook(hook(edit), with_kwargs=True)
        for layer, edit in edits.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def exchange(batch: Batch, generator: torch.Generator) -> Edit:
    """An edit that permutes the chats' residuals at the last prompt position among them."""
    rows = (batch.refused >= 0).nonzero()[:, 0]
    places = batch.decisions[rows]
    order = torch.randperm(len(rows), generator=generator).to(rows.device)

    def edit(residual: Tensor) -> Tensor:
        out = residual.clone()
        out[rows, places] = residual[rows[order], places[order]]
        return out

    return edit


def push(batch: Batch, size: float, generator: torch.Generator) -> Edit:
    """An edit that shifts each reply's own positions along the batch's refusal direction.

    The direction is the difference of the mean residuals at the last prompt position between the
    chats that refuse and those that comply; the shift is up to `size` mean residual norms, either
    way, the same along a row.  Where the batch has too few of one sort, nothing is shifted.
    """
    share = (2 * torch.rand(len(batch.tokens), generator=generator) - 1).to(batch.weights)
    along = torch.arange(batch.tokens.shape[1] - 1, device=batch.tokens.device)
    in_reply = (along > batch.decisions[:, None]) & (batch.refused >= 0)[:, None]

    def edit(residual: Tensor) -> Tensor:
        rows = torch.arange(len(residual), device=residual.device)
        decided = residual.detach()[rows, batch.decisions]
        yes, no = decided[batch.refused == 1], decided[batch.refused == 0]
        if min(len(yes), len(no)) < 4:
            return residual
        unit = functional.normalize(yes.mean(0) - no.mean(0), dim=0)
        scale = size * torch.cat([yes, no]).norm(dim=-1).mean()
        return residual + (in_reply * share[:, None])[:, :, None] * scale * unit

    return edit


# --------------------------------------------------------------------------------------------------
# The residual stream brought to the size it has in real models, without changing any output.
#
# RMSNorm divides by the residual's length, so a Qwen2 model whose every write to the residual
# stream (embedding, attention output, MLP output) is multiplied by c computes the same from a
# stream c times as long, if the norms' epsilon is multiplied by c squared and the final norm's
# weight, which meets the tied unembedding, is divided by c. Training leaves this stream some six
# hundred long; with c = 1/32, a power of two, it is about twenty at layer 20, and the alphas
# published for a real model of this architecture mean as much here.


RESIDUAL_SCALE = 1 / 32


@torch.no_grad()
def rescale(model: Qwen2ForCausalLM, scale: float = RESIDUAL_SCALE) -> Qwen2ForCausalLM:
    """Multiply the residual stream by `scale`, in place. Every logit stays what it was."""
    model.model.embed_tokens.weight.mul_(scale)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(scale)
        layer.mlp.down_proj.weight.mul_(scale)
    model.model.norm.weight.div_(scale)
    model.config.rms_norm_eps *= scale**2
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon *= scale**2
    return model


# --------------------------------------------------------------------------------------------------
# Training of the embedded model: its shape, its loss, and a loop that can stop and go on.
#
# Three things shape where the decision is made. At every step the loss is also taken after an early
# exit (the final norm and unembedding applied to the residual stream entering a random upper
# layer); without it a model this narrow decides in its last layer. On some steps the residuals at
# the last prompt position are exchanged between the chats of the batch at a random lower layer, so
# that the decision cannot be brought there before the middle layers. And on some steps the
# positions of the reply are shifted along the refusal direction, so that a reply already begun
# stays readable while a direction is steered.


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, besides the grammar and the tokenizer."""

    steps: int = 1200
    batch: int = 64
    seed: int = 0
    layers: int = 24
    width: int = 128
    mlp: int = 256
    heads: int = 4
    kv_heads: int = 2
    rate: float = 2e-3
    warmup: float = 0.06
    floor: float = 0.02
    decay: float = 0.05
    clip: float = 1.0
    exit_layers: tuple[int, int] = (11, 22)
    exit_weight: float = 0.3
    exchange_chance: float = 0.25
    exchange_layers: tuple[int, int] = (1, 5)
    push_chance: float = 0.3
    push_layers: tuple[int, int] = (9, 23)
    push_size: float = 0.6
    weights: Weights = field(default_factory=Weights)


def build(recipe: Recipe, bpe: Tokenizer) -> Qwen2ForCausalLM:
    """A freshly initialised model of the recipe's shape, the same for the same seed."""
    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=bpe.get_vocab_size(),
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=bpe.token_to_id(TURN_END),
        pad_token_id=bpe.token_to_id(END_OF_TEXT),
    )
    return Qwen2ForCausalLM(config)


def learning_rate(recipe: Recipe, step: int) -> float:
    """A linear warm-up, then half a cosine down to the floor's share of the peak rate."""
    rise = max(1, round(recipe.warmup * recipe.steps))
    if step < rise:
        return recipe.rate * (step + 1) / rise
    along = (step - rise) / max(1, recipe.steps - rise)
    return recipe.rate * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * along)))


def token_loss(model: Qwen2ForCausalLM, residual: Tensor, batch: Batch) -> Tensor:
    """Weighted next-token cross-entropy of normed residuals, a row's share counted in sixteenths.

    The sum is divided by the number of rows and not by that of tokens, so that a decision weighs
    as much in a batch of short sequences as in one of long ones.
    """
    weights = batch.weights[:, 1:]
    counted = weights > 0
    logits = model.lm_head(residual[counted])
    losses = functional.cross_entropy(logits, batch.tokens[:, 1:][counted], reduction="none")
    return (losses * weights[counted]).sum() / (16 * len(weights))


def _between(bounds: tuple[int, int], generator: torch.Generator) -> int:
    return int(torch.randint(bounds[0], bounds[1] + 1, (1,), generator=generator))


def loss_at(model: Qwen2ForCausalLM, recipe: Recipe, batch: Batch, step: int) -> Tensor:
    """The training loss of one batch; seed and step decide the exit layer and the edits."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    exit_layer = _between(recipe.exit_layers, generator)
    edits: dict[int, Edit] = {}
    if float(torch.rand(1, generator=generator)) < recipe.exchange_chance:
        edits[_between(recipe.exchange_layers, generator)] = exchange(batch, generator)
    if float(torch.rand(1, generator=generator)) < recipe.push_chance:
        edits[_between(recipe.push_layers, generator)] = push(batch, recipe.push_size, generator)
    with entering(model, edits):
        out = model.model(batch.tokens[:, :-1], use_cache=False, output_hidden_states=True)
    early = token_loss(model, model.model.norm(out.hidden_states[exit_layer]), batch)
    return token_loss(model, out.last_hidden_state, batch) + recipe.exit_weight * early


def optimiser(model: Qwen2ForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98))


@dataclass(frozen=True)
class Trained:
    """A model after some steps of its recipe, and the seconds spent on them in all sittings."""

    model: Qwen2ForCausalLM
    step: int
    seconds: float


def save_checkpoint(
    path: Path, recipe: Recipe, state: Trained, adam: torch.optim.Optimizer
) -> None:
    """Write the state of training, all at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "recipe": repr(recipe),
            "step": state.step,
            "seconds": state.seconds,
            "model": state.model.state_dict(),
            "adam": adam.state_dict(),
        },
        partial,
    )
    partial.replace(path)


def load_checkpoint(
    path: Path, recipe: Recipe, model: Qwen2ForCausalLM, adam: torch.optim.Optimizer
) -> Trained:
    """Put a saved state, if there is one, into model and optimiser."""
    if not path.exists():
        return Trained(model, 0, 0.0)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        written = state["recipe"]
    except Exception as error:  # what a file of anything makes of torch.load is anything
        raise DialError(f"{path} is no checkpoint: remove it to start anew") from error
    if written != repr(recipe):
        raise DialError(f"{path} was written by another recipe; remove it to start anew")
    try:
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        return Trained(model, int(state["step"]), float(state["seconds"]))
    except Exception as error:  # a state that lacks something, or is of another shape
        raise DialError(f"{path} is a damaged checkpoint: remove it to start anew") from error


def train(
    recipe: Recipe,
    bpe: Tokenizer,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    every: int = 50,
    stop_after: int | None = None,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Trained:
    """Train to the end of the recipe, or to `stop_after`, from the checkpoint if there is one."""
    model = build(recipe, bpe).to(device).train()
    adam = optimiser(model, recipe)
    state = Trained(model, 0, 0.0)
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, recipe, model, adam)
    end = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    for step in range(state.step, end):
        began = time.perf_counter()
        drawn = batch(bpe, recipe.seed, step, recipe.batch, recipe.weights)
        for group in adam.param_groups:
            group["lr"] = learning_rate(recipe, step)
        loss = loss_at(model, recipe, drawn.to(device), step)
        adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        adam.step()
        report(step + 1, float(loss.detach()))
        state = Trained(model, step + 1, state.seconds + time.perf_counter() - began)
        if checkpoint is not None and (state.step % every == 0 or state.step == end):
            save_checkpoint(checkpoint, recipe, state, adam)
    model.eval()
    return state


# --------------------------------------------------------------------------------------------------
# The trained weights on disk: written in half precision, read by the plain transformers path.
#
# Rounding happens before anything is measured, so every figure on the card is one of the files that
# ship. Beside the weights stands the record of the run that made them.


WEIGHTS = Path(__file__).parents[2] / "refusal_dial" / "embedded" / "weights"

WEIGHTS_FILE = "model.safetensors"

RECORD = "training.json"


def save_weights(trained: Trained, bpe: Tokenizer, recipe: Recipe, folder: Path) -> None:
    """Write model, tokenizer, generation defaults and the record of the training run."""
    folder.mkdir(parents=True, exist_ok=True)
    model = rescale(trained.model.to("cpu")).to(torch.float16)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=[bpe.token_to_id(TURN_END), bpe.token_to_id(END_OF_TEXT)],
        pad_token_id=bpe.token_to_id(END_OF_TEXT),
        do_sample=False,
    )
    model.save_pretrained(folder)
    (folder / WEIGHTS_FILE).chmod(0o644)
    wrap(bpe).save_pretrained(folder)
    _name_tokenizer_class(folder / "tokenizer_config.json")
    record = {
        "recipe": asdict(recipe),
        "steps": trained.step,
        "seconds": round(trained.seconds, 1),
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _name_tokenizer_class(path: Path) -> None:
    """Name the class that both older and newer transformers find for a Qwen2 model."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "Qwen2Tokenizer"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_weights(folder: Path) -> tuple[Any, Any]:
    """Model (in single precision) and tokenizer, by the plain transformers path.

    Raises `DialError`, naming the tensor, where the file lacks one, has one too many, or has one of
    another shape or number format than was written.
    """
    file = folder / WEIGHTS_FILE
    try:
        with safe_open(str(file), framework="pt") as held:
            numbers = {name: str(held.get_slice(name).get_dtype()) for name in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DialError(f"{file} cannot be read: {error}") from error
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    for message, names in (
        ("{} is missing, and would be random numbers", report["missing_keys"]),
        ("{} is none of this model's", report["unexpected_keys"]),
        ("{0[0]} has another shape than this model's", report["mismatched_keys"]),
        ("{} is not in float16", [n for n, kind in numbers.items() if kind != "F16"]),
    ):
        for first in sorted(names)[:1]:
            raise DialError(f"{file}: {message.format(first)}: make it again")
    return model.eval(), AutoTokenizer.from_pretrained(folder)
