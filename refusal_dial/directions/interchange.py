"""A direction as the files of other tools: one function a format, each the bytes of a file.

    h <- h + s v,  v = alpha r    at every token; s is the tool's own strength

r is the unit direction, alpha an absolute length in residual-stream units: at s = 1 a tool adds
what `steer(direction, alpha, pos="all")` adds. Where they add it:

    output of block n   gguf, lm-eval, vllm-lens, steering-vectors
    input of block n    svec (CAST), persona (as row n), neuronpedia (either, by name)

The input of block n is the output of block n - 1, so resid_pre of layer L is resid_post of L - 1.
What a format cannot say is refused with the reason: no block stands before resid_pre 0, llama.cpp
takes no `direction.0`, none of them counts positions from the end of a prompt. `files` reads all of
these back.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from gguf import GGUFWriter
from jaxtyping import Float
from torch import Tensor

from refusal_dial.common import ALL, DialError, Pos, format_value
from refusal_dial.directions.learning import Direction

SUFFIX_OF = {
    "gguf": ".gguf",
    "svec": ".svec",
    "lm-eval": ".pt",
    "vllm-lens": ".json",
    "persona": ".pt",
    "neuronpedia": ".json",
    "steering-vectors": ".pt",
}
"""The formats, and how the names of their files end."""


def vector_of(direction: Direction, alpha: float) -> Float[Tensor, " d_model"]:
    """`v = alpha r` in float32. Raises `DialError` for an alpha of 0, which steers nothing."""
    vector = (alpha * direction.unit.double()).float()
    if not bool(vector.any()) or not bool(torch.isfinite(vector).all()):
        raise DialError(f"an alpha of {alpha:g} makes no vector to add: expected another than 0")
    return vector


def check_everywhere(pos: Pos) -> None:
    """Raises `DialError` for any position but all of them."""
    if not isinstance(pos, str) or pos != ALL:
        raise DialError(
            f"the position {format_value(pos, 40)} cannot be exported: these formats add to every "
            f"token, or count from the start of a prompt; expected {ALL}"
        )


def input_block(direction: Direction, tool: str) -> int:
    """The block whose input the direction is added to. Raises `DialError` for a site that is not
    the residual stream between two blocks."""
    at = direction.provenance
    if at.site not in ("resid_pre", "resid_post"):
        raise DialError(
            f"{tool} adds to the residual stream between two blocks, and this direction is for "
            f"{at.site}: expected resid_pre or resid_post"
        )
    return at.layer + (at.site == "resid_post")


def output_block(direction: Direction, tool: str) -> int:
    """The block whose output the direction is added to. Raises `DialError` for another site, and
    for resid_pre 0, which no block stands before."""
    block = input_block(direction, tool) - 1
    if block < 0:
        raise DialError(
            f"{tool} adds to the output of a block, and no block stands before resid_pre 0: learn "
            "the direction at another layer, or export it as svec, persona or neuronpedia"
        )
    return block


def to_gguf(direction: Direction, alpha: float, model_type: str) -> bytes:
    """`direction.N`, float32: llama.cpp adds s v to the output of block N, N >= 1, and repeng and
    EasySteer count alike.

    Raises `DialError` for block 0, with which llama.cpp refuses a file.
    """
    block = output_block(direction, "gguf")
    if block < 1:
        raise DialError(
            f"llama.cpp refuses a file with direction.0, the output of block 0, where this "
            f"direction ({direction.provenance.site} {direction.provenance.layer}) is added: "
            "export it as lm-eval, svec or steering-vectors"
        )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "direction.gguf"
        writer = GGUFWriter(path, "controlvector")
        writer.add_string("controlvector.model_hint", model_type)
        writer.add_uint32("controlvector.layer_count", 1)
        writer.add_string("controlvector.method", direction.provenance.method or "given")
        writer.add_tensor(f"direction.{block}", vector_of(direction, alpha).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def to_svec(direction: Direction, alpha: float, model_type: str, n_layers: int) -> bytes:
    """`{"model_type", "directions": {"n": [d]}, "explained_variances": {"n": float}}`: CAST adds
    s v to the input of block n (its own loader needs explained_variances). AISteer360 reads the
    same file; its CAST adds there too, its CAA at the output of the block that it is given.

    Raises `DialError` after the last block, which no block's input is.
    """
    block = input_block(direction, "svec")
    if block >= n_layers:
        raise DialError(
            f"CAST adds to the input of a block, and none stands after resid_post "
            f"{block - 1} of this model: export it as gguf, lm-eval or steering-vectors"
        )
    vector = vector_of(direction, alpha).tolist()
    return _json(
        {
            "model_type": model_type,
            "directions": {str(block): vector},
            "explained_variances": {str(block): 1.0},
        }
    )


def to_lm_eval(direction: Direction, alpha: float, blocks: str) -> bytes:
    """`{hookpoint: {"steering_vector", "steering_coefficient", "action": "add", ...}}` of lm-eval's
    `steered` model: s v is added to what the module `hookpoint` gives out, and s is in the file.
    `blocks` is the name of the list of blocks within the base model, such as `layers`."""
    block = output_block(direction, "lm-eval")
    held = {
        "steering_vector": direction.unit.float(),
        "steering_coefficient": float(alpha),
        "action": "add",
        "bias": None,
        "head_index": None,
    }
    vector_of(direction, alpha)  # is there something to add?
    return _torch({f"{blocks}.{block}": held})


def to_vllm_lens(direction: Direction, alpha: float) -> bytes:
    """`SteeringVector` of vllm-lens as it is sent: `activations` (layer d_model), `layer_indices`,
    `scale` s: s v is added to the output of these layers. The tensor's bytes are not compressed,
    which its reader takes as well."""
    block = output_block(direction, "vllm-lens")
    rows = vector_of(direction, alpha).numpy()[None].astype("<f4")
    packed = {
        "data": base64.b64encode(rows.tobytes()).decode("ascii"),
        "dtype": "float32",
        "original_dtype": "torch.float32",
        "shape": list(rows.shape),
    }
    return _json(
        {
            "activations": packed,
            "layer_indices": [block],
            "scale": 1.0,
            "norm_match": False,
            "position_indices": None,
        }
    )


def to_persona(direction: Direction, alpha: float, n_layers: int) -> bytes:
    """A tensor `n_layers + 1, d_model` of persona_vectors: row n is added to the input of block n
    (as `hidden_states[n]`), s its coefficient; all other rows are zero.

    Raises `DialError` for the last row, which transformers reads after the final norm.
    """
    row = input_block(direction, "persona")
    if row >= n_layers:
        raise DialError(
            f"row {row} of a persona vector is read after the model's final norm, and resid_post "
            f"{row - 1} is not: export it as gguf, lm-eval or steering-vectors"
        )
    rows = torch.zeros(n_layers + 1, len(direction.unit))
    rows[row] = vector_of(direction, alpha)
    return _torch(rows)


def to_neuronpedia(direction: Direction, alpha: float, model_id: str) -> bytes:
    """The body of a POST to /api/vector/new: the unit vector, its site, and alpha as the strength
    that it is steered with unless another is chosen."""
    at = direction.provenance
    input_block(direction, "neuronpedia")
    vector_of(direction, alpha)
    return _json(
        {
            "modelId": model_id,
            "layerNumber": at.layer,
            "hookType": f"hook_{at.site}",
            "vector": direction.unit.float().tolist(),
            "vectorDefaultSteerStrength": float(alpha),
            "vectorLabel": at.method or "direction",
        }
    )


def to_steering_vectors(direction: Direction, alpha: float) -> bytes:
    """The arguments of `SteeringVector`, which has no file of its own:
    `SteeringVector(**torch.load(path, weights_only=True))` adds s v to the output of block n."""
    block = output_block(direction, "steering-vectors")
    vector = vector_of(direction, alpha)
    return _torch({"layer_activations": {block: vector}, "layer_type": "decoder_block"})


def _json(held: dict[str, object]) -> bytes:
    return (json.dumps(held, allow_nan=False) + "\n").encode()


def _torch(held: object) -> bytes:
    stream = io.BytesIO()
    torch.save(held, stream)
    return stream.getvalue()
