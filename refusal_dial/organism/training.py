"""Training of the embedded model: its shape, its loss, and a loop that can stop and go on.

Three things shape where the decision is made.  At every step the loss is also taken after an
early exit (the final norm and unembedding applied to the residual stream entering a random upper
layer); without it a model this narrow decides in its last layer.  On some steps the residuals at
the last prompt position are exchanged between the chats of the batch at a random lower layer, so
that the decision cannot be brought there before the middle layers.  And on some steps the
positions of the reply are shifted along the refusal direction, so that a reply already begun
stays readable while a direction is steered.

This module knows the corpus only through `corpus.batch`, and nothing of how the result is judged.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM

from refusal_dial.organism import corpus
from refusal_dial.organism.shaping import Edit, entering, exchange, push
from refusal_dial.organism.tokenizer import END_OF_TEXT, MAX_LENGTH, TURN_END
from refusal_dial.types import DialError


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
    weights: corpus.Weights = field(default_factory=corpus.Weights)


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


def token_loss(model: Qwen2ForCausalLM, residual: Tensor, batch: corpus.Batch) -> Tensor:
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


def loss_at(model: Qwen2ForCausalLM, recipe: Recipe, batch: corpus.Batch, step: int) -> Tensor:
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
        drawn = corpus.batch(bpe, recipe.seed, step, recipe.batch, recipe.weights)
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
