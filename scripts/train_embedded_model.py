"""Train the embedded model from nothing but this repository, and write its card.

    python scripts/train_embedded_model.py

It takes about half an hour on two CPU cores.  Interrupt it at any time and run the same command
again: it goes on from its last checkpoint.  `--measure-only` rewrites the card of weights that
stand in the folder already.  On a busy machine, `OMP_WAIT_POLICY=passive` in the environment keeps
the threads from waiting for one another at full speed.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from refusal_dial.organism import card, storage, tokenizer, training

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train, save, measure, write the card."""
    recipe = training.Recipe()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=storage.WEIGHTS)
    parser.add_argument("--checkpoint", type=Path, default=REPOSITORY / "checkpoints/embedded.pt")
    parser.add_argument("--steps", type=int, default=recipe.steps)
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--measure-only", action="store_true")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    recipe = training.Recipe(steps=args.steps, seed=args.seed)
    if not args.measure_only:
        bpe = tokenizer.train_tokenizer()
        bar = tqdm(total=recipe.steps, desc="training", unit="step", smoothing=0.05)

        def report(step: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}")

        trained = training.train(
            recipe, bpe, device=args.device, checkpoint=args.checkpoint, report=report
        )
        bar.close()
        storage.save_weights(trained, bpe, recipe, args.out)
    print(card.write_card(args.out, REPOSITORY / "data" / "prompts.jsonl"))


if __name__ == "__main__":
    main()
