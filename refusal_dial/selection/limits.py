"""The names of the rules of selection, and each one's published limits. It does not apply them, and
imports nothing heavy: `--help` needs it."""

from __future__ import annotations

from dataclasses import dataclass

RULES = ("refusal", "cosmic", "effect")


@dataclass(frozen=True)
class Limits:
    """Published limits: candidates from the last fifth of the layers, or that change harmless
    prompts by more than 0.1 nats, or after whose addition refusal is not likelier than not."""

    layers: float | None = 0.8
    kl: float | None = 0.1
    induce: float | None = 0.0

    def last_layer(self, n_layers: int) -> int:
        """Layers from this one on are discarded."""
        return n_layers if self.layers is None else int(n_layers * self.layers)


LIMITS = {
    "refusal": Limits(),
    "cosmic": Limits(induce=None),
    "effect": Limits(layers=None, kl=None, induce=None),
}
"""Each rule's own limits. `effect` has none but that a candidate can be measured at all."""
