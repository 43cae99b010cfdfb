"""Write a run on replies as a log of Inspect, which `inspect view` opens; no model is loaded.

Writes RUN/replies.eval, or the file that --out names. Needs inspect_ai, in this environment or one
beside it. What the judge left unscored stays unscored.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial import cli
from refusal_dial.cli.command_line import argument, flag


@dataclass(frozen=True)
class Flags:
    """Which run, and where the log goes."""

    run: str = argument("a run folder of caa_refusal, compare_prompting_steering or eval_direction")
    out: str | None = flag(None, "the .eval file to write")


def main(flags: Flags) -> None:
    from refusal_dial.common import DialError, named
    from refusal_dial.data.prompts import data_hash, load_prompts
    from refusal_dial.report.inspect_log import eval_log
    from refusal_dial.run.folder import find_run, read_config, read_table

    folder = find_run(flags.run)
    config = read_config(folder, "model.name", "data.source", "data.hash", "judge.name")
    data = config["settings"]["data"]
    prompts = load_prompts(data["source"])
    if data_hash(prompts) != data["hash"]:
        raise DialError(f"{data['source']} has changed since the run: its texts are not the run's")
    texts = {prompt.id: prompt.text for prompt in prompts}
    log = eval_log(config, read_table(folder, "scores"), texts)
    from inspect_ai.log import write_eval_log

    path = named(flags.out, ".eval") if flags.out else folder / "replies.eval"
    write_eval_log(log, str(path.resolve()))
    print(f"log: {path.resolve()}, {len(log.samples)} samples (inspect view {path})")


if __name__ == "__main__":
    cli.run(main)
