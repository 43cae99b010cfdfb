"""Train the embedded model from nothing but this repository, and write its card.

It takes under an hour on two CPU cores. Interrupt it at any time and run the same command
again: it goes on from its last checkpoint. `--measure-only` rewrites the card of weights that stand
in the folder already. On a busy machine, `OMP_WAIT_POLICY=passive` in the environment keeps the
threads from waiting for one another at full speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal_dial import cli
from refusal_dial.cli import flag

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Flags:
    """Where the weights go, and how they are trained."""

    out: str = flag(str(REPOSITORY / "refusal_dial/organism/weights"), "folder of the weights")
    checkpoint: str = flag(str(REPOSITORY / "checkpoints/embedded.pt"), "where training resumes")
    steps: int | None = flag(None, "training steps; default those of the recipe")
    seed: int = flag(0, "seed of the weights and of the corpus")
    device: str = flag("cpu", "cpu, cuda or mps")
    threads: int = flag(2, "CPU threads")
    measure_only: bool = flag(False, "only measure the weights that are there")


def main(flags: Flags) -> None:
    import torch
    from tqdm import tqdm

    from refusal_dial.organism import card, storage, tokenizer, training

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
                recipe, bpe, device=flags.device, checkpoint=Path(flags.checkpoint), report=report
            )
        storage.save_weights(trained, bpe, recipe, Path(flags.out))
    print(card.write_card(Path(flags.out), REPOSITORY / "data" / "prompts.jsonl"))


if __name__ == "__main__":
    cli.run(main)
