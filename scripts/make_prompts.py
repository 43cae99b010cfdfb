"""Write data/prompts.jsonl: the HARMFUL, EDGE and BENIGN prompts of the experiments.

Every prompt comes from the side of the grammar that training never sees. Where it carries a
`pair_id`, the HARMFUL prompt and its partner (EDGE or BENIGN) differ in one phrase of equal token
length, so that activations can be patched between them position by position. The same file is
written whenever and wherever this runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from refusal_dial import cli
from refusal_dial.cli.command_line import flag


@dataclass(frozen=True)
class Flags:
    """Where the prompts go."""

    out: str = flag(str(Path(__file__).resolve().parents[1] / "data/prompts.jsonl"), "the file")


def main(flags: Flags) -> None:
    from embedded_model.prompt_set import make_prompts, to_jsonl

    from refusal_dial.common import named, write_whole

    prompts = make_prompts()
    write_whole(named(flags.out, ".jsonl"), to_jsonl(prompts))
    counts = Counter(prompt.subset for prompt in prompts)
    pairs = {prompt.pair_id for prompt in prompts if prompt.pair_id}
    print(f"{flags.out}: {dict(sorted(counts.items()))}, {len(pairs)} matched pairs")


if __name__ == "__main__":
    cli.run(main)
