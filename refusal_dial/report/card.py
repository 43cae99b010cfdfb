"""The card of a direction: what it is, where it was read, if it was tested, and how to load it.

A card is Markdown with a YAML head, as the hub reads it. Names are data: they are quoted in the
head, and escaped in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from refusal_dial.directions.learning import Direction
from refusal_dial.report.replies import plain_markdown

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

DIRECTION_FILE = "direction.safetensors"


def direction_card(direction: Direction, repo: str, verdict: Sequence[str] = ()) -> str:
    """The card of a direction that lies in `repo`; `verdict` are the sentences of the run that
    tested it, if one did."""
    at = direction.provenance
    head = ["library_name: refusal_dial", "tags: [steering-vector, interpretability]"]
    if HUB_NAME.fullmatch(at.model):
        head.append(f"base_model: {json.dumps(at.model)}")
    facts = {
        "model": f"{at.model}, revision {at.revision}" if at.revision else at.model,
        "layer": at.layer,
        "site": at.site,
        "position": at.pos,
        "method": at.method,
        "raw norm": f"{direction.norm:.4g}",
        "prompts": f"{len(at.prompt_ids)}, hash {at.data_hash}" if at.prompt_ids else "",
    }
    rows = [f"| {name} | {plain_markdown(value)} |" for name, value in facts.items() if value != ""]
    tested = [f"- {plain_markdown(line)}" for line in verdict] or ["No run of a test is beside it."]
    return "\n".join(
        [
            *("---", *head, "---", ""),
            f"# {plain_markdown(repo)}",
            "",
            "A behaviour direction: a unit vector in a model's activations that `steer` adds alpha "
            "times. It can weaken refusal as well as strengthen it; do not deploy a model whose "
            "refusals were turned down.",
            "",
            *("| | |", "|---|---|", *rows, ""),
            *("## Tested", "", *tested, ""),
            *("## Use", "", "```python"),
            "from huggingface_hub import hf_hub_download",
            "from refusal_dial import directions",
            "",
            f"path = hf_hub_download({json.dumps(repo)}, {json.dumps(DIRECTION_FILE)})",
            "direction = directions.load(path)",
            "```",
            "",
        ]
    )
