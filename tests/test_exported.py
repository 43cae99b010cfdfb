"""A saved direction is what others add: TransformerLens's vLLM driver gets the same number."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from transformer_lens.model_bridge.sources.vllm.intervention_specs import validate_spec
from transformer_lens.model_bridge.sources.vllm.worker_extension import _apply_intervention

from refusal_dial import directions
from refusal_dial.common import hook_name
from refusal_dial.directions.learning import Provenance, from_vector
from refusal_dial.hooks import steer
from refusal_dial.model.tokens import last_logits, tokenize

LAYER, ALPHA = 2, 3.0


def test_added_to_the_block_before_by_transformer_lens_own_specs_it_steers_the_same(qwen, tmp_path):
    """Its driver edits a block's output by `output * scale + bias`, at every token; what goes into
    the layer that we steer is what comes out of the block before."""
    path = tmp_path / "direction.safetensors"
    raw = torch.randn(32, generator=torch.Generator().manual_seed(3))
    directions.save(from_vector(raw, Provenance(LAYER, "resid_pre", -1)), path)
    value = ALPHA * load_file(path)["unit"]
    spec = validate_spec(f"blocks.{LAYER - 1}.hook_out", {"op": "add", "value": value}, width=32)
    scale, bias = torch.ones(32), torch.zeros(32)
    _apply_intervention(scale, bias, spec)

    def driver(output, hook):
        return output * scale + bias

    tokens = tokenize(qwen, ["a b c d", "how to"])
    theirs = last_logits(qwen, tokens, [(hook_name("resid_post", LAYER - 1), driver)])
    hook = steer(directions.load(path), ALPHA, layer=LAYER, pos="all")
    torch.testing.assert_close(theirs, last_logits(qwen, tokens, [hook]), atol=1e-5, rtol=1e-5)
    assert (theirs - last_logits(qwen, tokens)).abs().max() > 0.1
