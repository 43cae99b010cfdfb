"""The trained weights on disk: written in half precision, read by the plain transformers path.

Rounding happens before anything is measured, so every figure on the card is one of the files that
ship.  Beside the weights stands the record of the run that made them.
"""

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from refusal_dial.organism.scale import rescale
from refusal_dial.organism.tokenizer import END_OF_TEXT, TURN_END, wrap
from refusal_dial.organism.training import Recipe, Trained
from refusal_dial.types import DialError

WEIGHTS = Path(__file__).parent / "weights"
WEIGHTS_FILE = "model.safetensors"
RECORD = "training.json"


def save_weights(trained: Trained, bpe: Tokenizer, recipe: Recipe, folder: Path) -> None:
    """Write model, tokenizer, generation defaults and the record of the training run."""
    folder.mkdir(parents=True, exist_ok=True)
    model = rescale(trained.model.to("cpu")).to(torch.float16)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=[bpe.token_to_id(TURN_END), bpe.token_to_id(END_OF_TEXT)],
        pad_token_id=bpe.token_to_id(END_OF_TEXT),
        do_sample=False,
    )
    model.save_pretrained(folder)
    (folder / WEIGHTS_FILE).chmod(0o644)
    wrap(bpe).save_pretrained(folder)
    _name_tokenizer_class(folder / "tokenizer_config.json")
    record = {
        "recipe": asdict(recipe),
        "steps": trained.step,
        "seconds": round(trained.seconds, 1),
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _name_tokenizer_class(path: Path) -> None:
    """Name the class that both older and newer transformers find for a Qwen2 model."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "Qwen2Tokenizer"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_weights(folder: Path) -> tuple[Any, Any]:
    """Model (in single precision) and tokenizer, by the plain transformers path.

    Raises `DialError`, naming the tensor, where the file lacks one, has one too many, or has one of
    another shape or number format than was written.
    """
    file = folder / WEIGHTS_FILE
    try:
        with safe_open(str(file), framework="pt") as held:
            numbers = {name: str(held.get_slice(name).get_dtype()) for name in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DialError(f"{file} cannot be read: {error}") from error
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    for said, names in (
        ("{} is missing, and would be random numbers", told["missing_keys"]),
        ("{} is none of this model's", told["unexpected_keys"]),
        ("{0[0]} has another shape than this model's", told["mismatched_keys"]),
        ("{} is not in float16", [n for n, kind in numbers.items() if kind != "F16"]),
    ):
        for first in sorted(names)[:1]:
            raise DialError(f"{file}: {said.format(first)}: make it again")
    return model.eval(), AutoTokenizer.from_pretrained(folder)
