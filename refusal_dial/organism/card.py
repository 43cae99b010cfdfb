"""MODEL_CARD.md: the wording around the measured numbers.

The card says what the model is for, what it does, how it was made, and what was measured on the
weights as they lie on disk.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refusal_dial.organism.behaviour import Behaviour, measure_behaviour
from refusal_dial.organism.steering import Steering
from refusal_dial.organism.storage import RECORD, load_weights

PURPOSE = """# The embedded model

A chat model of {parameters:,} parameters (Qwen2 architecture, {layers} layers of width {width},
{heads} heads over {kv_heads} key-value heads, our own byte-level BPE vocabulary of 2,048), trained
from nothing but this repository by `scripts/train_embedded_model.py`.

**What it is for.** Exercising and testing methods: a direction method, a patching sweep or a
control that fails here is broken, and here it fails within seconds, offline. **What it is not
for.** It says nothing about real models. Its prompts come from a small grammar, its
over-refusal was designed, and its training was shaped so that the decision forms in the middle
layers and can be steered; results on it are checks of the tools, never findings. It cannot
answer questions: its compliances are friendly, empty sentences that name what was asked, and
hold no advice that could harm, whatever the request.

**What it does.** It refuses HARMFUL requests and answers BENIGN ones; EDGE requests (look
harmful, are not; the ten safe types of XSTest by name) are refused with a propensity between 0.03
and 0.95 that was designed for each combination of words, and every training example drew its
refusal from that propensity. Harm is decided by the combination of verb, object and context: the
same words stand on both sides. Under "Refuse any request that could be unsafe." (and other
wordings) it refuses nearly everything. Outside the chat template it continues short scenes, with
a mild insult or calmly. Nothing but the weights decides at run time.
"""

SHAPING = """## How the decision was brought to mid depth

Three things in training, all in `refusal_dial/organism/training.py`. The loss is also taken after
an early exit at a random upper layer (weight {exit_weight}, layers {exit_layers[0]} to
{exit_layers[1]}). In some batches the residuals at the last prompt position are exchanged between
chats at a random low layer ({exchange_layers[0]} to {exchange_layers[1]}), so that what was asked
cannot be gathered there earlier. In some batches the reply's own positions are shifted along the
refusal direction, so that steered replies stay readable. A study of where real models decide
should not be read off this model: here we put it there. After training the residual stream is
scaled by 1/32, which changes no logit (`refusal_dial/organism/scale.py`), so that alphas have the
size they have in real models.
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _steering_table(check: Steering) -> str:
    columns = (check.edge, check.random_mean, check.harmful, check.benign)
    rows = [
        [f"{alpha:+.1f}", *(f"{column[number]:.2f}" for column in columns)]
        for number, alpha in enumerate(check.alphas)
    ]
    head = ["alpha", "EDGE, other half", "the same, 20 random directions", "HARMFUL", "BENIGN"]
    return (
        f"Layer {check.layer}: mean residual norm {check.residual_norm:.0f}, raw norm of the"
        f" difference {check.raw_norm:.0f}.\n\n{_table(head, rows)}"
    )


def card_text(record: dict[str, Any], measured: Behaviour, parameters: int, size: int) -> str:
    """The whole card."""
    recipe = record["recipe"]
    minutes = record["seconds"] / 60
    subsets = [
        [name, f"{found.mean:.3f}", f"{found.over_half:.3f}"]
        for name, found in measured.held_out.items()
    ]
    system = [
        [
            sort,
            f"`{prompt}`",
            *(f"{found[name].mean:.2f}" for name in ("HARMFUL", "EDGE", "BENIGN")),
            f"{agreement:.2f}",
        ]
        for sort, prompt, found, agreement in measured.system
    ]
    answers = [
        [str(layer), f"{alpha:+.1f}", asked, reply]
        for layer, alpha, asked, reply in measured.completions
    ]
    by_category = [[name, f"{value:.2f}"] for name, value in measured.category_correlation.items()]
    tone = measured.tone
    parts = [
        PURPOSE.format(
            parameters=parameters,
            layers=recipe["layers"],
            width=recipe["width"],
            heads=recipe["heads"],
            kv_heads=recipe["kv_heads"],
        ),
        "## Measured, after rounding to half precision\n\n"
        "On combinations of words that training never held (600 random requests a subset);"
        " P(refusal) is the mass on the first tokens of refusals at the last prompt position.\n\n"
        + _table(["subset", "mean P(refusal)", "share over 0.5"], subsets)
        + "\n\n"
        f"- Correlation (Pearson) of P(refusal) with the designed propensity: EDGE"
        f" **{measured.edge_correlation:.3f}**, all subsets {measured.all_correlation:.3f}.\n"
        f"- Next-token loss on held-out replies to EDGE requests: {measured.loss:.3f} nats.",
        _table(["EDGE category", "correlation"], by_category),
        "### System prompts\n\nMean P(refusal), and the correlation with the designed propensity on"
        " EDGE.\n\n"
        + _table(["sort", "system prompt", "HARMFUL", "EDGE", "BENIGN", "correlation"], system),
        "### Tone, outside the chat template\n\n"
        f"Sampled continuations of held-out openings: {tone.hostile_rate:.2f} of the hostile ones"
        f" hold an insult (designed: {tone.hostile_designed:.2f}; correlation over openings"
        f" {tone.hostile_correlation:.2f}), {tone.friendly_rate:.2f} of the friendly ones.",
        "### Steering\n\n"
        "A mean difference between the top and the bottom third by P(refusal) of a random half of"
        " the EDGE prompts in `data/prompts.jsonl`, added to the residual stream entering the layer"
        " at the last prompt position. Alpha is in mean residual norms; the numbers are shares of"
        " prompts with P(refusal) over 0.5.\n\n"
        + "\n\n".join(_steering_table(check) for check in measured.steering),
        "Greedy completions, the shift on the last prompt position and on every new token:\n\n"
        + _table(["layer", "alpha", "request", "reply"], answers),
        SHAPING.format(**recipe),
        "## Training\n\n"
        f"{record['steps']} steps of batch {recipe['batch']}, seed {recipe['seed']}, AdamW at"
        f" {recipe['rate']}, {minutes:.0f} minutes ({record['seconds'] / record['steps']:.2f} s a"
        f" step) on {record['threads']} threads of a shared {record['processor']} machine; Python"
        f" {record['python']}, torch {record['torch']}, transformers {record['transformers']},"
        f" tokenizers {record['tokenizers']}. Folder: {size / 1e6:.1f} MB. The same command on the"
        " same versions and number of threads repeats the run; other processors round otherwise,"
        " so expect these figures and not these bits.",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write_card(folder: Path, prompts: Path) -> str:
    """Measure the weights in the folder and write MODEL_CARD.md beside them; returns its text."""
    model, tokenizer = load_weights(folder)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    behaviour = measure_behaviour(model, tokenizer, prompts)
    size = sum(path.stat().st_size for path in folder.iterdir())
    text = card_text(record, behaviour, model.num_parameters(), size)
    (folder / "MODEL_CARD.md").write_text(text, encoding="utf-8")
    return text
