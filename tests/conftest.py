"""Fixtures: models loaded once a session, and the shared material where it is at hand.

What takes seconds to import is imported where it is used: the process that only hands the tests
to its workers needs none of it.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import pytest
from hypothesis import settings
from type_checks import sparing

if TYPE_CHECKING:
    from small_runs import Material
    from transformer_lens.model_bridge import TransformerBridge

ROOT = Path(__file__).parents[1]
jaxtyping.jaxtyped = sparing(jaxtyping.jaxtyped)  # the package is not imported yet
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # for scripts started as processes
# A change fails its own run, not the next; a busy machine fails none.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)  # HYPOTHESIS_PROFILE=search looks further
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
# What takes longest begins first, so that no worker has it left when the others have ended.
LONGEST = ("executors", "faults", "readme", "patching_experiments", "engine", "notebooks", "verify")
LONGEST += ("forecast", "workers", "report_page", "replies", "docs", "continuation", "attribution")
LONGEST += ("organism", "experiments", "bad_input", "corpus", "planted", "conditioning", "study")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # by number of tests: long ones stand in small files


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported here stays, so the garbage collector need not look through it for ever."""
    gc.disable()
    found = yield
    gc.freeze()
    gc.enable()
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    torch.set_num_threads(THREADS)
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A lone surrogate that a test logged is escaped: a worker cannot send it, and would die."""
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode())
        for title, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def log_of_no_run() -> Iterator[None]:
    """A run that a test leaves unfinished keeps no line from the log of the next test."""
    from refusal_dial.run.folder import close_log

    yield
    close_log()


@pytest.fixture(scope="session")
def some_prompts(tmp_path_factory) -> Path:
    """Every ninth of the embedded prompts, pairs apart."""
    from refusal_dial.data.prompts import load_prompts

    path = tmp_path_factory.mktemp("prompts") / "some.jsonl"
    rows = [asdict(prompt) | {"pair_id": None} for prompt in load_prompts()[::9]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def small_material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """What small runs are made of, one for all processes of a session (see `small_runs`)."""
    from small_runs import material

    base = tmp_path_factory.getbasetemp()
    return material((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small_runs")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared material beside the project; tests that need it are skipped without it."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"no shared material at {path}")
    return path


@pytest.fixture(scope="session")
def embedded() -> TransformerBridge:
    from refusal_dial.model.loading import load_model

    return load_model("embedded", device="cpu")


@pytest.fixture(scope="session")
def smollm2() -> TransformerBridge:
    """A real chat model; tests of it are skipped where its package is not installed."""
    from refusal_dial.common import DialError
    from refusal_dial.model.loading import load_model

    try:
        return load_model("smollm2", device="cpu")
    except DialError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """A tiny random Qwen2 with a chat template, loaded from a folder."""
    from refusal_dial.model.loading import load_model

    return load_model(str(qwen_folder_at(tmp_path_factory)), device="cpu")


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_folder_at(tmp_path_factory)


def qwen_folder_at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny

    return tiny.folder("Qwen2", tmp_path_factory.mktemp("qwen2"))


@pytest.fixture
def interrupt_after(monkeypatch):
    """A context whose run is interrupted with so many batches on the disk; gives their sizes."""
    from refusal_dial.run import job

    @contextmanager
    def context(batches):
        real, sizes = job.append, []

        def appending(run, rows):
            if len(sizes) == batches:
                raise KeyboardInterrupt
            real(run, rows)
            sizes.append(len(rows))

        monkeypatch.setattr(job, "append", appending)
        with pytest.raises(KeyboardInterrupt):
            yield sizes
        monkeypatch.setattr(job, "append", real)

    return context
