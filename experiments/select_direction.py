"""Which of the model's many refusal directions should be used: from which layer and position?

A mean difference of HARMFUL and harmless prompts is taken at every template position and layer.
Each is ablated everywhere on HARMFUL prompts (bypass) and harmless ones (KL), and added to harmless
prompts (induce); the rule drops what does damage or induces nothing and keeps the best (Arditi et
al. 2024). `--rule cosmic` scores no output at all, `--rule effect` any scorer. What was chosen is
then reported on prompts that the choice never saw.

`--published FOLDER` applies the rule to a run of the refusal_direction project, without a model.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import SelectionFlags


def main(flags: SelectionFlags) -> None:
    from refusal_dial.report.selection import print_report, print_selection
    from refusal_dial.studies import selection as rules

    if flags.published is not None:
        from refusal_dial.studies.selection import candidate, read_published

        frame, raw = read_published(flags.published)
        ranked = rules.rank(flags.rule, frame, int(frame["layer"].max()) + 1, flags.limits)
        print_selection(ranked, flags.rule)
        pos, layer = rules.chosen(ranked)
        norm = "" if raw is None else f", norm {candidate(raw, pos, layer).norm:.2f}"
        print(f"chosen: position {pos}, layer {layer}{norm}")
        return
    from refusal_dial.studies.base import load_study
    from refusal_dial.studies.selection import conduct_selection

    study = load_study(flags)
    selected = conduct_selection("select_direction", study, flags)
    print_selection(selected.ranked, flags.rule)
    print_report(selected.report)
    file = f"{selected.run.folder}/direction.safetensors"
    print(f"direction: {file}")
    print(f"verify it: python experiments/verify_direction.py {file}")


if __name__ == "__main__":
    cli.run(main)
