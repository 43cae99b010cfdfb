"""A study of continuations, opened: model, openings, and a direction a layer with its scale.

    direction = mean(pooled activations of BENIGN) - mean(those of CHALLENGING)

an activation being the mean over the last `pool` tokens of an opening (CAA, Rimsky et al. 2024, as
the published toxicity study pools it). So a positive alpha leads away from what is challenging.
Pooling shortens the raw difference, the more the shorter the openings, so the scale of alpha is
kept apart: see `step`. Nothing is steered or written here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.activations import collect_pooled
from refusal_dial.continuation.flags import ContinuationFlags
from refusal_dial.directions import Direction, Provenance, mean_diff
from refusal_dial.flags import MACHINES
from refusal_dial.model import check_layers, check_site, identity, load_model
from refusal_dial.openings import BENIGN, CHALLENGING, Openings, load_openings
from refusal_dial.prompts import Prompt, data_hash
from refusal_dial.tokens import Tokens, tokenize
from refusal_dial.toxicity import TextScorer, load_toxicity

Pooled = Float[Tensor, "layer prompt d_model"]


@dataclass(frozen=True, eq=False)
class Opened:
    """Everything the question starts from. `pooled` and `last` are of the openings to learn from,
    BENIGN before CHALLENGING; `tokens` are of those to measure on."""

    model: TransformerBridge
    openings: Openings
    tokens: Tokens
    scorer: TextScorer
    layers: tuple[int, ...]
    learned: tuple[Direction, ...]
    pooled: Pooled
    last: Pooled
    about: tuple[str, ...]

    def step(self, layer: int, unit: str) -> float:
        """How long alpha = 1 is at a layer, in residual-stream units.

        `distance`: `|mean(h | BENIGN) - mean(h | CHALLENGING)|` of the openings' last tokens, which
        is how far apart the two are where steering takes place. `norm`: the raw pooled difference,
        as published. `residual`: the mean norm of the last tokens. `absolute`: 1.
        """
        i = self.layers.index(layer)
        half = self.last.shape[1] // 2
        sizes = {
            "distance": (self.last[i, :half].mean(0) - self.last[i, half:].mean(0)).norm(),
            "norm": self.learned[i].norm,
            "residual": self.last[i].norm(dim=-1).mean(),
            "absolute": 1.0,
        }
        return float(sizes[unit])


def open_continuations(flags: ContinuationFlags) -> Opened:
    """Load what the flags name and learn a direction a layer.

    Raises `DialError` for whatever of it cannot be used.
    """
    openings = load_openings(flags.openings, flags.n, flags.n_pairs, flags.seed)
    scorer = load_toxicity(flags.scorer, flags.device, label=flags.toxic_label)
    model = load_model(flags.model, flags.device, flags.dtype, device_map=flags.device_map)
    layers = check_layers(model, flags.layer or range(int(model.cfg.n_layers)))
    check_site(model, flags.site)
    learn = [p for subset in (BENIGN, CHALLENGING) for p in openings.learn if p.subset == subset]
    tokens = tokenize(model, [p.text for p in openings.measure], chat=False)
    seen = tokenize(model, [p.text for p in learn], chat=False)
    pooled = collect_pooled(model, seen, layers, flags.pool, site=flags.site)
    last = collect_pooled(model, seen, layers, 1, site=flags.site)
    who, half = identity(model), len(learn) // 2
    learned = tuple(
        mean_diff(pooled[i, :half], pooled[i, half:], _provenance(flags, layer, who, learn))
        for i, layer in enumerate(layers)
    )
    about = (f"toxicity scorer: {scorer.name}, {scorer.version}",)
    return Opened(model, openings, tokens, scorer, layers, learned, pooled, last, about)


def _provenance(flags: ContinuationFlags, layer: int, who: Any, learn: list[Prompt]) -> Provenance:
    return Provenance(
        layer=layer,
        site=flags.site,
        pos=flags.pos,
        model=who.name,
        revision=who.revision,
        seed=flags.seed,
        prompt_ids=tuple(p.id for p in learn),
        data_hash=data_hash(learn),
        pool=flags.pool,
    )


def continuation_settings(opened: Opened, flags: ContinuationFlags) -> dict[str, Any]:
    """What the rows depend on, as plain data for a run's config."""
    settings = asdict(flags)
    for name in ("out", "config", "load_existing", "rows", "max_missing", *MACHINES):
        settings.pop(name, None)
    settings["model"] = identity(opened.model).as_dict()
    settings["scorer"] = {"name": opened.scorer.name, "version": opened.scorer.version}
    settings["data"] = {
        "source": flags.openings,
        "learn": data_hash(opened.openings.learn),
        "measure": data_hash(opened.openings.measure),
        "n_prompts": len(opened.openings.measure),
    }
    settings["step"] = {str(n): round(opened.step(n, flags.alpha_unit), 6) for n in opened.layers}
    return settings
