"""Write a direction as another tool's file, with a check by which one sees that the tool steers.

The file's vector is what the tool adds at strength 1: `--alpha`, in `--alpha-unit`. Beside it goes
FILE.check.json: one prompt, its token ids, and the logit that moves most at the last position,
before and after. A tool that shows these numbers steers as we do. docs/interchange.md has the
formats, where each adds a vector, and what none of them can say.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial import cli
from refusal_dial.cli.command_line import alpha_of, argument, at_least, choice, flag, parse_whole
from refusal_dial.cli.flags import ALPHA_UNIT, MODEL_HELP, STEERABLE

N_PROMPTS = 32

FORMATS = ("gguf", "svec", "lm-eval", "vllm-lens", "persona", "neuronpedia", "steering-vectors")


@dataclass(frozen=True)
class Flags:
    """Which direction, where it is added and how far, for which tool."""

    direction: str = argument("a direction file of any format, or a run folder")
    to: str = flag("gguf", f"one of {', '.join(FORMATS)}", choice(FORMATS, "format"))
    layer: int | None = flag(
        None, "its layer; default: what the file records", at_least(0, parse_whole)
    )
    site: str | None = flag(
        None, f"one of {', '.join(STEERABLE)}; default: the file's", choice(STEERABLE, "site")
    )
    pos: str = flag("all", "which tokens; the formats say no others than all")
    alpha: float = flag(0.3, "what strength 1 adds, in --alpha-unit", alpha_of)
    alpha_unit: str | None = ALPHA_UNIT
    model: str = flag("embedded", MODEL_HELP)
    name: str | None = flag(None, "what the tool calls the model; default: as transformers does")
    prompts: str = flag("embedded", f"up to {N_PROMPTS} of each subset: the mean residual norm")
    text: str = flag("How do I bake bread?", "the prompt of the check")
    out: str | None = flag(None, "the file to write; default: beside the direction")
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps")
    any_model: bool = flag(False, "take a direction that was learned on another model")
    plain: bool = flag(False, "plain text, for a model without a chat template")


def main(flags: Flags) -> None:
    import json

    from refusal_dial.cells import alphas_in
    from refusal_dial.common import located, write_whole
    from refusal_dial.data.prompts import load_prompts, some_of_each
    from refusal_dial.directions.files import check_fits, direction_at, read_direction
    from refusal_dial.directions.interchange import SUFFIX_OF, check_everywhere
    from refusal_dial.model.activations import collect, nothing
    from refusal_dial.model.loading import load_model
    from refusal_dial.model.tokens import tokenize
    from refusal_dial.studies.export import blocks_of, steering_check, written_as

    check_everywhere(flags.pos)
    prompts = some_of_each(load_prompts(flags.prompts), N_PROMPTS, seed=0)
    direction = direction_at(flags.direction, flags.layer, flags.site)
    model = load_model(flags.model, flags.device, "float32")
    check_fits(direction, model, flags.any_model)
    at = direction.provenance
    # 1. how long alpha = 1 is: the residual norm where the direction is added
    tokens = tokenize(model, [prompt.text for prompt in prompts], chat=not flags.plain)
    there, _ = collect(model, tokens, (at.layer,), site=at.site, pos=-1, read=nothing)
    unit, norm = flags.alpha_unit or "residual", float(there[0].norm(dim=-1).mean())
    (alpha,) = alphas_in([flags.alpha], unit, norm, direction)
    # 2. the file, and the check
    name = flags.name or str(model.original_model.config.model_type)
    content = written_as(direction, alpha.absolute, flags.to, model, name)
    check = steering_check(model, direction, alpha.absolute, flags.text, not flags.plain)
    where = located(flags.direction)
    folder, stem = (where, "direction") if where.is_dir() else (where.parent, where.stem)
    out = located(flags.out or folder / f"{stem}_{flags.to}{SUFFIX_OF[flags.to]}")
    write_whole(out, content)
    about = {
        "format": flags.to,
        "model": flags.model,
        "layer": at.layer,
        "site": at.site,
        "alpha": alpha.absolute,
        "alpha_relative": alpha.relative,
        "module": blocks_of(model),
    }
    beside = write_whole(
        out.with_name(out.name + ".check.json"), json.dumps(about | check, indent=1) + "\n"
    )
    # 3. read it back: the same direction at the same place
    again = read_direction(out)
    off = float((again.unit - direction.unit).abs().max())
    print(
        f"exported: {out} ({flags.to}; strength 1 adds {alpha.absolute:g}, read back to {off:.1g})"
    )
    print(
        f"check: {beside}: after {flags.text!r} the logit of {check['token_text']!r} goes from "
        f"{check['logit_before']:.3f} to {check['logit_after']:.3f}"
    )


if __name__ == "__main__":
    cli.run(main)
