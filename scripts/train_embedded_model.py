"""Train the embedded model from nothing but this repository, and write its card.

It takes under an hour on two CPU cores. Interrupt it at any time and run the same command
again: it goes on from its last checkpoint. `--measure-only` rewrites the card of weights that stand
in the folder already. On a busy machine, `OMP_WAIT_POLICY=passive` in the environment keeps the
threads from waiting for one another at full speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal_dial import cli
from refusal_dial.cli.command_line import at_least, flag, parse_whole, seed_of
from refusal_dial.common import DialError, format_value, located

REPOSITORY = Path(__file__).resolve().parents[1]


def _threads(value: Any) -> int:
    if not 1 <= parse_whole(value) <= 1024:
        raise DialError(f"expected a number of threads from 1 to 1024, not {format_value(value)}")
    return parse_whole(value)


@dataclass(frozen=True)
class Flags:
    """Where the weights go, and how they are trained."""

    out: str = flag(str(REPOSITORY / "refusal_dial/embedded/weights"), "folder of the weights")
    checkpoint: str = flag(str(REPOSITORY / "checkpoints/embedded.pt"), "where training resumes")
    steps: int | None = flag(None, "training steps; default the recipe's", at_least(1, parse_whole))
    seed: int = flag(0, "seed of the weights and of the corpus", seed_of)
    device: str = flag("cpu", "cpu, cuda or mps")
    threads: int = flag(2, "CPU threads, 1 to 1024", _threads)
    measure_only: bool = flag(False, "only measure the weights that are there")


def main(flags: Flags) -> None:
    import torch
    from embedded_model import measure as card
    from embedded_model import tokenizer, training
    from embedded_model import training as storage
    from tqdm import tqdm

    from refusal_dial.model.loading import device_of

    out, device = located(flags.out), device_of(flags.device)[0]
    if flags.measure_only and not (out / storage.RECORD).is_file():
        raise DialError(f"no trained weights in {str(out)!r}: train them without --measure-only")
    torch.set_num_threads(flags.threads)
    default = training.Recipe()
    steps = default.steps if flags.steps is None else flags.steps
    recipe = training.Recipe(steps=steps, seed=flags.seed)
    if not flags.measure_only:
        bpe = tokenizer.train_tokenizer()
        with tqdm(total=recipe.steps, desc="training", unit="step", smoothing=0.05) as bar:

            def report(step: int, loss: float) -> None:
                bar.update(step - bar.n)
                bar.set_postfix(loss=f"{loss:.3f}")

            trained = training.train(
                recipe, bpe, device=device, checkpoint=located(flags.checkpoint), report=report
            )
        storage.save_weights(trained, bpe, recipe, out)
    print(card.write_card(out, REPOSITORY / "data" / "prompts.jsonl"))


if __name__ == "__main__":
    cli.run(main)
