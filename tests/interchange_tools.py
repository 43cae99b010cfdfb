"""Run in an environment of other tools (see `tool_env`): the logits that a tool gives under a file.

python interchange_tools.py TOOL MODEL FILE IDS OUT    IDS as JSON, OUT an .npy of the last row
"""

from __future__ import annotations

import ctypes
import json
import sys

import numpy as np


def plain(folder):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def lm_eval(folder, file, ids):
    import torch
    from lm_eval.models.hf_steered import SteeredModel

    model = SteeredModel(folder, file, device="cpu", dtype="float32")
    return model._model_call(torch.tensor([ids]))[0, -1]


def steering_vectors(folder, file, ids):
    import torch
    from steering_vectors import SteeringVector

    model = plain(folder)
    with SteeringVector(**torch.load(file, weights_only=True)).apply(model):
        return model(torch.tensor([ids])).logits[0, -1]


def repeng(folder, file, ids):
    np.float_ = np.float64  # it was written for numpy 1, and says so in an annotation only
    import torch
    from repeng import ControlModel, ControlVector

    vector = ControlVector.import_gguf(file)
    model = ControlModel(plain(folder), list(vector.directions))
    model.set_control(vector, 1.0)
    return model(torch.tensor([ids])).logits[0, -1]


def peft(folder, adapter, ids):
    import torch
    from peft import PeftModel

    return PeftModel.from_pretrained(plain(folder), adapter)(torch.tensor([ids])).logits[0, -1]


class Opaque(ctypes.Structure):
    """A struct of llama.h by value: what calls return and take alone, longer than any of them."""

    _fields_ = (("bytes", ctypes.c_char * 1024),)


class Text(ctypes.Structure):
    """What stands behind a `std::string` of the wheel's library (before C++11's): it points to
    `text`, and before that are its length, its capacity and how many share it."""

    _fields_ = (
        ("length", ctypes.c_size_t),
        ("capacity", ctypes.c_size_t),
        ("shared", ctypes.c_size_t),
        ("text", ctypes.c_char * 4096),
    )


class LoadInfo(ctypes.Structure):
    """`{float strength; std::string fname}`."""

    _fields_ = (("strength", ctypes.c_float), ("fname", ctypes.c_void_p))


class LoadInfos(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("most", ctypes.c_void_p))


class Loaded(ctypes.Structure):
    """`{int n_embd; std::vector<float> data}`."""

    _fields_ = (
        ("n_embd", ctypes.c_int),
        ("begin", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
        ("most", ctypes.c_void_p),
    )


LOADER = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"


def llama_cpp(model_file, file, ids):
    """What llama-cli does with --control-vector: its own loader, its own adapter, one decode."""
    import xllamacpp.xllamacpp as built

    lib = ctypes.CDLL(built.__file__)
    for name in ("llama_model_default_params", "llama_context_default_params"):
        getattr(lib, name).restype = Opaque
    for name in ("llama_model_load_from_file", "llama_init_from_model"):
        getattr(lib, name).restype = ctypes.c_void_p
    lib.llama_batch_get_one.restype = Opaque
    lib.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(model_file.encode(), lib.llama_model_default_params())
    context = ctypes.c_void_p(
        lib.llama_init_from_model(ctypes.c_void_p(model), lib.llama_context_default_params())
    )
    assert context.value, "llama.cpp did not load the model"
    vocabulary = lib.llama_model_get_vocab
    vocabulary.restype = ctypes.c_void_p
    n = lib.llama_vocab_n_tokens(ctypes.c_void_p(vocabulary(ctypes.c_void_p(model))))
    if file != "none":
        loader = getattr(lib, LOADER)
        loader.restype = Loaded
        name = file.encode()
        text = Text(len(name), len(name), 0, name)
        info = LoadInfo(1.0, ctypes.addressof(text) + Text.text.offset)
        start = ctypes.addressof(info)
        end = start + ctypes.sizeof(info)
        found = loader(ctypes.byref(LoadInfos(start, end, end)))
        if found.n_embd < 0:
            raise SystemExit("llama.cpp refuses the file")
        size = (found.end - found.begin) // 4
        failed = lib.llama_set_adapter_cvec(
            context,
            ctypes.c_void_p(found.begin),
            ctypes.c_size_t(size),
            found.n_embd,
            1,
            lib.llama_model_n_layer(ctypes.c_void_p(model)),
        )
        assert failed == 0, failed
    tokens = (ctypes.c_int32 * len(ids))(*ids)
    assert lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(ids))) == 0
    return np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n,)).copy()


TOOLS = {
    "lm-eval": lm_eval,
    "steering-vectors": steering_vectors,
    "repeng": repeng,
    "llama.cpp": llama_cpp,
    "peft": peft,
}

if __name__ == "__main__":
    tool, model, file, ids, out = sys.argv[1:]
    np.save(out, np.asarray(TOOLS[tool](model, file, json.loads(ids)), dtype=np.float64))
