"""The work that is timed: grids, and the arithmetic that each cannot do without.

Times mean little by themselves, so every work counts its operations twice: what one forward pass a
cell costs, and what is left when nothing is computed that an intervention cannot change. Their
ratio bounds what any exact engine can gain by leaving work out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from refusal_dial.common import Hook, hook_name
from refusal_dial.hooks import Edit, patch, steer
from refusal_dial.model.loading import load_model, source_of
from refusal_dial.model.tokens import Tokens
from refusal_dial.scoring.logits import LogitDiff

LENGTH = 40
ALPHAS = [float(a) for a in range(-8, 9)]


T = TypeVar("T")


def timed(run: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """(seconds, what it gives). On one thread of a CPU they are the processor's time of this
    process, which other work on the machine does not stop; else the time of day."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    found = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start, found


@dataclass(frozen=True, eq=False)
class Work:
    """A grid on some prompts; `target` is the least ratio asked for on the 0.5B shape."""

    name: str
    tokens: Tokens
    grid: list[list[Hook]]
    target: float
    patched_from: str = ""  # the site, where TransformerLens's patching functions do the same

    def thinned(self) -> Work:
        """Every fourth cell: the same work at a quarter of the size."""
        return Work(self.name, self.tokens, self.grid[::4], self.target, self.patched_from)


scorer = LogitDiff((40, 41), (50, 51))


SHAPES = {
    "shape": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "shape-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
"""The sizes of Qwen2.5-0.5B and Qwen2.5-7B."""


def qwen_weights(name: str, device: str, dtype: str) -> Qwen2ForCausalLM:
    """Random weights in one of these shapes."""
    config = Qwen2Config(vocab_size=151936, max_position_embeddings=4096, **SHAPES[name])
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            return Qwen2ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def qwen_shape(name: str, device: str, dtype: str) -> TransformerBridge:
    """They, as TransformerLens's model."""
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    bridge = TransformerBridge.boot_transformers(
        f"random/qwen2.5-{name}",
        hf_model=qwen_weights(name, device, dtype),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="a", eos_token="b"),
        device=device,
    )
    bridge.requires_grad_(False)
    return bridge.eval()


def model_of(name: str, device: str, dtype: str) -> TransformerBridge:
    """A shape, or whatever `load_model` takes."""
    known = name in SHAPES
    return qwen_shape(name, device, dtype) if known else load_model(name, device, dtype)


def weights_of(name: str, device: str, dtype: str) -> nn.Module:
    """The weights as Hugging Face loads them, with its own SDPA attention."""
    if name in SHAPES:
        return qwen_weights(name, device, dtype)
    number = getattr(torch, dtype)
    return AutoModelForCausalLM.from_pretrained(source_of(name), dtype=number).to(device).eval()


def random_tokens(model: TransformerBridge, batch: int, seed: int) -> Tokens:
    device = next(model.original_model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, min(1000, int(model.cfg.d_vocab)), (batch, LENGTH), generator=generator)
    return Tokens(ids.to(device), torch.ones_like(ids).to(device))


@torch.no_grad()
def cache_of(model: TransformerBridge, tokens: Tokens, sites: Iterable[str]) -> dict[str, Tensor]:
    names = [hook_name(s, layer) for s in sites for layer in range(len(model.blocks))]
    seen: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[Tensor, object], None]:
        def keep(activation: Tensor, hook: object) -> None:
            seen[name] = activation.clone()

        return keep

    with model.hooks(fwd_hooks=[(name, keeper(name)) for name in names]):
        model(tokens.ids, attention_mask=tokens.mask, logits_to_keep=1, use_cache=False)
    return seen


def works(model: TransformerBridge, batch: int) -> list[Work]:
    """The rows of the table."""
    layers = range(len(model.blocks))
    middle = len(layers) // 2
    corrupted, clean = (random_tokens(model, batch, seed) for seed in (0, 1))
    shared = Tokens(clean.ids.clone(), clean.mask)
    shared.ids[:, :20] = corrupted.ids[:, :20]
    apart = cache_of(model, clean, ("resid_pre", "z"))
    alike = cache_of(model, shared, ("resid_pre",))

    def resid(cache: dict[str, Tensor], layer: int, pos: int) -> list[Hook]:
        return [patch(cache[hook_name("resid_pre", layer)][:, pos], layer=layer, pos=pos)]

    def head(layer: int, number: int) -> list[Hook]:
        z = apart[hook_name("z", layer)][:, -1, number]
        return [patch(z, layer=layer, site="z", head=number, pos=-1)]

    units = torch.nn.functional.normalize(
        torch.randn(21, int(model.cfg.d_model), generator=torch.Generator().manual_seed(0)), dim=-1
    ).to(corrupted.ids.device)

    def dial(directions: int, at: Iterable[int]) -> list[list[Hook]]:
        return [
            [steer(unit, alpha, layer=layer, pos=-1)]
            for layer in at
            for unit in units[:directions]
            for alpha in ALPHAS
        ]

    everywhere = [(layer, pos) for layer in layers for pos in range(-LENGTH, 0)]
    heads = range(int(model.cfg.n_heads))
    n = len(layers)
    return [
        Work(
            f"resid_pre, {n} layers x {LENGTH} positions, unrelated prompts",
            corrupted,
            [resid(apart, *at) for at in everywhere],
            5,
            "resid_pre",
        ),
        Work(
            "the same, 20 leading tokens shared",
            corrupted,
            [resid(alike, *at) for at in everywhere],
            21,
            "resid_pre",
        ),
        Work(
            f"resid_pre, last 5 positions, {n} layers",
            corrupted,
            [resid(apart, layer, pos) for layer, pos in everywhere if pos >= -5],
            20,
            "resid_pre",
        ),
        Work(
            f"every head's z at the last position, {n} layers x {len(heads)}",
            corrupted,
            [head(layer, number) for layer in layers for number in heads],
            30,
            "z",
        ),
        Work("17 alphas, one layer", corrupted, dial(1, [middle]), 18),
        Work(f"17 alphas x {n} layers", corrupted, dial(1, layers), 70),
        Work("17 alphas x 21 directions, one layer", corrupted, dial(21, [middle]), 100),
    ]


def operations(model: TransformerBridge, work: Work) -> tuple[float, float]:
    """(one forward pass a cell, the least an exact engine must do), in multiply-adds.

    A forward pass unembeds every position, as TransformerLens does unless asked otherwise. The
    least is one recording, then for each cell the blocks from its layer on and the positions from
    its own on, of the last block the keys and values alone but for the last position, and of the
    unembedding the tokens that the scorer reads. Rows that a patch leaves equal cost nothing.
    """
    cfg, n = model.cfg, len(model.blocks)
    layer = model.original_model.model.layers[0].original_component
    block = sum(p.numel() for p in layer.parameters() if p.ndim == 2)
    kv = int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads)
    keys = 2 * kv * int(cfg.d_head) * int(cfg.d_model)
    block += 2 * LENGTH * int(cfg.n_heads) * int(cfg.d_head)
    unembed = int(cfg.d_vocab) * int(cfg.d_model)
    read = len(scorer.reads) * int(cfg.d_model)
    batch = len(work.tokens)
    forward = batch * LENGTH * (n * block + unembed)

    def cone(start: int, positions: int) -> int:
        if start == n:
            return read
        return (n - 1 - start) * positions * block + (positions - 1) * keys + block + read

    least = float(batch * (cone(0, LENGTH) + unembed))
    recorded = cache_of(model, work.tokens, ("resid_pre",)) if "shared" in work.name else {}
    for cell in work.grid:
        edit = cell[0][1]
        if not isinstance(edit, Edit):
            raise TypeError("only edits can be counted")
        rows = batch
        if recorded:
            now = recorded[hook_name("resid_pre", edit.layer)][:, edit.pos]
            rows = int((now != edit.operation.value).any(-1).sum())  # type: ignore[attr-defined]
        least += rows * cone(edit.layer, -edit.pos)
    return float(len(work.grid) * forward), least
