"""Many workers, many rows: what they cost the one process that hands out and writes.

    python benchmarks/scaling.py [--workers 1,2,4,8,16] [--rows 1000,10000,100000,1000000]
        [--batch 1000] [--cost 0.2] [--real]

The workers are Ray actors on this machine that sleep instead of computing (`--cost` seconds a
batch), so that more of them fit than there are cores; pool, window, journal and rows are the real
ones. The driver's CPU time stands beside the clock: it does not depend on what else the
machine does. `--real` sweeps the embedded model here and on one and two workers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from refusal_dial.cli.flags import SteeringFlags
from refusal_dial.run.folder import append, kept_batches, open_run, read_table
from refusal_dial.run.machines import Pool, compute, connected, in_order
from refusal_dial.stats.summary import mark_dropped

HERE: dict[str, str] = {}


def rows_of(number: int, batch: int) -> pd.DataFrame:
    """Rows as a steering sweep makes them: labels, ids, and a score with all its digits."""
    prompts = [f"{number:06d}-{i % 64:02d}" for i in range(batch)]
    columns = {"direction": "learned", "seed": None, "layer": 20, "site": "resid_pre", "pos": -1}
    frame = pd.DataFrame({**columns, "alpha": [i / 7 for i in range(batch)], "prompt_id": prompts})
    frame = frame.assign(subset="HARMFUL", split="holdout", alpha_relative=0.25)
    frame["score"] = np.random.default_rng(number).standard_normal(batch)
    return frame.astype({"seed": "Int64", "layer": "Int64", "pos": "Int64"})


def sleepers(ray: Any) -> Callable[[], Any]:
    """Actors that take `cost` seconds for a batch and send back its rows."""
    make = rows_of

    class Sleeper:
        def open(self, task: tuple[int, float]) -> dict[str, str]:
            self.batch_rows, self.cost = task
            return {}

        def batch(self, number: int) -> tuple[Any, list[str]]:
            time.sleep(self.cost)
            return make(number, self.batch_rows), []

    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    return ray.remote(Sleeper).options(num_cpus=0.001).remote


def streamed(
    ray: Any, actor_of: Callable[[], Any], workers: int, n: int, batch: int, cost: float
) -> dict[str, float]:
    """n batches from so many workers into a run folder; what that took."""
    me = psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        run = open_run("scaling", {"n": n}, str(Path(folder) / "run"))
        with closing(Pool(ray, actor_of, workers, ray.put((batch, cost)), HERE)) as pool:
            while len(pool.idle) < workers:  # starting is not what is measured
                pool.take()
            rss = peak = me.memory_info().rss
            wall, cpu = time.perf_counter(), time.process_time()
            for frame, _ in in_order(pool, range(n)):
                append(run, mark_dropped(frame))
                peak = max(peak, me.memory_info().rss)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        size = run.scores.stat().st_size
        resume = timed(lambda: kept_batches(run, [batch] * n))
        read = timed(lambda: read_table(run.folder, "scores"))
    return {
        "rows": n * batch,
        "workers": workers,
        "seconds": wall,
        "share of ideal": n * cost / workers / wall,
        "driver CPU, ms a batch": 1e3 * cpu / n,
        "driver CPU, us a row": 1e6 * cpu / (n * batch),
        "memory, MB more": (peak - rss) / 2**20,
        "file, MB": size / 2**20,
        "resume, s": resume,
        "read, s": read,
    }


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def real(batch_size: int = 16) -> Iterator[dict[str, float | str]]:
    """The embedded model, 17 alphas x 11 directions, where it is and on workers."""
    import torch

    from refusal_dial import load_model, load_prompts, steer, tokenize
    from refusal_dial.cells import Cell
    from refusal_dial.directions.learning import Provenance, from_vector, random_directions
    from refusal_dial.run.plan import Budget, SweepPlan
    from refusal_dial.scoring.logits import LogitDiff

    model, prompts = load_model("embedded", "cpu"), load_prompts("embedded")[: 12 * batch_size]
    tokens = tokenize(model, [prompt.text for prompt in prompts])
    first = from_vector(
        torch.arange(1.0, 1 + int(model.cfg.d_model)), Provenance(20, "resid_pre", -1)
    )
    cells = [
        Cell({"direction": i, "alpha": alpha}, [steer(one, alpha, layer=20)])
        for i, one in enumerate([first, *random_directions(first, 10, 0)])
        for alpha in range(-8, 9)
    ]
    sweep = SweepPlan(
        tokens=tokens,
        rows=pd.DataFrame({"prompt_id": [prompt.id for prompt in prompts]}),
        cells=cells,
        scorer=LogitDiff((40, 41), (50, 51)),
        budget=Budget(batch_size),
    )
    scores: list[pd.Series] = []
    for executor, workers in (("local", 0), ("ray", 1), ("ray", 2)):
        flags = SteeringFlags(executor=executor, workers=workers or None)
        start = time.perf_counter()
        first_at, frames = 0.0, []
        for frame in compute(model, sweep, sweep.tasks, flags):
            first_at = first_at or time.perf_counter() - start
            frames.append(frame)
        scores.append(pd.concat(frames)["score"])
        yield {
            "executor": f"{executor} {workers}" if workers else executor,
            "first batch, s": first_at,
            "the other 11, s": time.perf_counter() - start - first_at,
            "largest difference": float((scores[-1] - scores[0]).abs().max()),
        }


def show(title: str, table: list[dict[str, Any]]) -> None:
    print(f"\n{title}\n\n{pd.DataFrame(table).to_string(index=False, float_format='%.3g'.__mod__)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workers", default="1,2,4,8,16")
    parser.add_argument("--rows", default="1000,10000,100000,1000000")
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--cost", type=float, default=0.2)
    parser.add_argument("--real", action="store_true")
    args = parser.parse_args()
    with connected(None) as ray:
        actor_of = sleepers(ray)
        several = [int(w) for w in args.workers.split(",")]
        show(
            f"workers: 12 batches each of {args.batch} rows, {args.cost} s a batch",
            [streamed(ray, actor_of, w, 12 * w, args.batch, args.cost) for w in several],
        )
        show(
            "rows a batch: 100 batches from 4 workers, no cost",
            [streamed(ray, actor_of, 4, 100, batch, 0.0) for batch in (10, 100, 1000, 10000)],
        )
        wanted = [int(rows) // args.batch for rows in args.rows.split(",")]
        show(
            f"rows: batches of {args.batch} from 4 workers, no cost",
            [streamed(ray, actor_of, 4, n, args.batch, 0.0) for n in wanted],
        )
    if args.real:
        show("the embedded model, 192 prompts x 187 cells, batches of 16 prompts", list(real()))


if __name__ == "__main__":
    main()
