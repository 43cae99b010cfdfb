"""The model: loading it from any place, tokens as it expects them, the activations it leaves."""

from refusal_dial.model.loading import identity, load_model

__all__ = ["identity", "load_model"]
