"""Write data/prompts.jsonl: the HARMFUL, EDGE and BENIGN prompts of the experiments.

Every prompt comes from the side of the grammar that training never sees.  Where it carries a
`pair_id`, the HARMFUL prompt and its partner (EDGE or BENIGN) differ in one phrase of equal token
length, so that activations can be patched between them position by position.  The same file is
written whenever and wherever this runs.

    python scripts/make_prompts.py [--out data/prompts.jsonl]
"""

import argparse
from pathlib import Path

from refusal_dial.organism.prompt_set import make_prompts, to_jsonl

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    """Write the file and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "data" / "prompts.jsonl")
    out: Path = parser.parse_args().out
    prompts = make_prompts()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(to_jsonl(prompts), encoding="utf-8")
    subsets = [prompt.subset for prompt in prompts]
    counts = ", ".join(f"{subsets.count(name)} {name}" for name in sorted(set(subsets)))
    pairs = len({prompt.pair_id for prompt in prompts if prompt.pair_id})
    print(f"{out}: {counts}, {pairs} matched pairs")


if __name__ == "__main__":
    main()
