"""Where to patch: layers, sites, roles, heads and neurons, laid out as a list of places.

`lay_out` is the one layout; what experiments ask for is `lay_out` with some of it fixed. This
module knows which sites a model has. It does not patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.model import check_layers, check_site
from refusal_dial.patching.pairs import Pairs
from refusal_dial.patching.roles import role_order
from refusal_dial.types import DialError, hook_name

BLOCK_SITES = ("resid_pre", "resid_mid", "attn_out", "mlp_out")
LAST = "end-1"


@dataclass(frozen=True)
class Place:
    """One activation, or the same activation at several roles that are patched together."""

    layer: int
    site: str
    roles: tuple[str, ...]
    head: int | None = None
    neuron: int | None = None

    @property
    def role(self) -> str:
        """The role, or the first and the last of several."""
        return self.roles[0] if len(self.roles) == 1 else f"{self.roles[0]}..{self.roles[-1]}"


def sites_of(model: TransformerBridge) -> tuple[str, ...]:
    """Those of `BLOCK_SITES` that this architecture has."""
    return tuple(site for site in BLOCK_SITES if hook_name(site, 0) in model.hook_dict)


def describe(model: TransformerBridge, places: Sequence[Place]) -> str:
    """How many places, at which sites; and which sites were skipped where every one was meant."""
    sites = list(dict.fromkeys(place.site for place in places))
    layers = sorted({place.layer for place in places})
    span = str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
    text = f"{len(places)} place{'s' * (len(places) > 1)}: {', '.join(sites)} in layers {span}"
    lacking = [site for site in BLOCK_SITES if site not in sites_of(model)]
    if lacking and set(sites) >= set(sites_of(model)):
        name = type(model.original_model).__name__
        text += f"; {name} has no {' and no '.join(lacking)}: skipped"
    return text


def lay_out(
    model: TransformerBridge,
    pairs: Pairs,
    *,
    sites: Sequence[str] | None = None,
    layers: Sequence[int] = (),
    roles: Sequence[str] | None = (LAST,),
) -> list[Place]:
    """Every layer x site x role; z by head, mlp_post by neuron.

    No layers means all of them, `sites=None` every residual, attention and MLP site the model has,
    `roles=None` every role of these pairs. Raises `DialError` for a layer or site it lacks.
    """
    layers = check_layers(model, layers or range(int(model.cfg.n_layers)))
    sites = sites_of(model) if sites is None else [check_site(model, site) for site in sites]
    roles = pairs.roles() if roles is None else sorted(roles, key=role_order)
    return [
        Place(layer, site, (role,), head, neuron)
        for layer in layers
        for site in sites
        for role in roles
        for head in (range(int(model.cfg.n_heads)) if site == "z" else [None])
        for neuron in (range(int(model.cfg.d_mlp)) if site == "mlp_post" else [None])
    ]


by_role = partial(lay_out, sites=("resid_pre",), roles=None)


def last_k(
    model: TransformerBridge,
    pairs: Pairs,
    k: int,
    *,
    site: str = "resid_pre",
    layers: Sequence[int] = (),
) -> list[Place]:
    """Each of the last k positions alone, then all k together, layer by layer.

    Raises `DialError` where a prompt has fewer than k tokens.
    """
    shortest = min(min(pair.lengths) for pair in pairs.items)
    if not 1 <= k <= shortest:
        raise DialError(f"k must be from 1 to the shortest prompt's {shortest} tokens, not {k}")
    roles = tuple(f"end-{i}" for i in range(k, 0, -1))
    alone = lay_out(model, pairs, sites=(site,), layers=layers, roles=roles)
    if k == 1:
        return alone
    together = [Place(layer, site, roles) for layer in dict.fromkeys(p.layer for p in alone)]
    return sorted([*alone, *together], key=lambda place: place.layer)
