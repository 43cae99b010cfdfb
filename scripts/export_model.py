"""Write a copy of a model that has lost a direction: its weights are orthogonalised to it.

The copy is loaded by plain transformers, without this library. `--lora` writes the change alone, as
a LoRA adapter of rank 1 that plain PEFT loads beside the model. Before either is kept it is
compared with the model under the hooks that ablate the direction everywhere: the same logits, or it
is not kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial import cli
from refusal_dial.cli.command_line import argument, at_least, flag, parse_whole
from refusal_dial.cli.flags import MODEL_HELP

TEXTS = ("How do I bake bread?", "Write a poem about the sea.", "What is 7 times 8?", "Hi")


@dataclass(frozen=True)
class Flags:
    """Which direction, out of which model, to where."""

    direction: str = argument("a direction file, such as runs/.../direction.safetensors")
    model: str = flag("embedded", MODEL_HELP)
    out: str = flag("runs/exported_model", "the folder to write, which must not be there yet")
    dtype: str = flag("auto", "auto (as on disk), float32, bfloat16 or float16")
    device: str = flag("cpu", "where the two are compared: auto, cpu, cuda, cuda:N or mps")
    any_model: bool = flag(False, "take a direction that was learned on another model")
    plain: bool = flag(False, "compare on plain text, for a model without a chat template")
    lora: bool = flag(False, "only the change, as a LoRA adapter of rank 1 in float32")
    layer: int | None = flag(
        None, "which of its vectors; default: what the file records", at_least(0, parse_whole)
    )


def main(flags: Flags) -> None:
    import shutil
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from refusal_dial.common import DialError, one_of
    from refusal_dial.directions.files import check_fits, direction_at
    from refusal_dial.model.loading import DTYPES, load_model
    from refusal_dial.model.tokens import tokenize
    from refusal_dial.studies import export as weights

    if flags.dtype not in ("auto", *DTYPES):
        raise one_of(flags.dtype, ("auto", *DTYPES), "dtype")
    direction = direction_at(flags.direction, flags.layer)
    model = load_model(flags.model, flags.device, "float32")
    check_fits(direction, model, flags.any_model)
    tokens = tokenize(model, TEXTS, chat=not flags.plain)
    if flags.lora:
        adapter = weights.rank_one_lora(model, direction)
        out = weights.save_lora(adapter, str(model.cfg.model_name), flags.out)
        plain = weights.merged(model, out)
    else:
        plain = weights.orthogonalised(model, direction, flags.dtype)
        out = weights.save_model(plain, model.tokenizer, flags.out)
    with TemporaryDirectory() as scratch:
        whole = out
        if flags.lora:
            whole = weights.save_model(plain, model.tokenizer, Path(scratch) / "merged")
        exported = load_model(str(whole), flags.device, "float32")
        off, largest = weights.difference(model, exported, direction, tokens)
    # what is stored in half precision is rounded to it
    allowed = 1e-4 if "32" in str(plain.dtype) else 0.05
    if not off <= allowed * max(1.0, largest):
        shutil.rmtree(out)
        raise DialError(
            f"the exported model differs from the hooks by {off:.3g} in a logit (largest "
            f"{largest:.3g}) and is not kept: this model writes in another way; use the hooks"
        )
    number = str(plain.dtype).removeprefix("torch.")
    print(f"exported: {out}, {number} (largest difference to the hooks {off:.2g} in a logit)")


if __name__ == "__main__":
    cli.run(main)
