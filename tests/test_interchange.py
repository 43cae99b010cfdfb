"""A direction as other tools' files: read back to the same place, refused where it cannot be said,
and what each tool does under its file is what our hooks do."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import script_case
import tiny
import torch
import zstandard
from gguf import GGUFReader, GGUFWriter
from small_runs import arguments
from tool_env import tool_python
from transformers import AutoModelForCausalLM

from refusal_dial import directions
from refusal_dial.cli import command_line as cli
from refusal_dial.cli.command_line import own_layers_of
from refusal_dial.common import DialError
from refusal_dial.directions.files import direction_at, read_direction
from refusal_dial.directions.interchange import SUFFIX_OF, check_everywhere
from refusal_dial.directions.learning import Provenance, from_vector
from refusal_dial.hooks import steer
from refusal_dial.model.loading import load_model
from refusal_dial.model.tokens import Tokens, last_logits
from refusal_dial.studies.export import steering_check, written_as
from refusal_dial.studies.steering import layers_to_use

ALPHA = 3.0
IDS = torch.randint(3, 250, (1, 12), generator=torch.Generator().manual_seed(0))
AT = [("resid_pre", 1), ("resid_pre", 2), ("resid_post", 1), ("resid_post", 2), ("resid_pre", 0)]
REFUSED = {
    ("gguf", "resid_pre", 0): "no block stands before resid_pre 0",
    ("gguf", "resid_pre", 1): r"refuses a file with direction\.0",
    ("lm-eval", "resid_pre", 0): "no block stands before resid_pre 0",
    ("vllm-lens", "resid_pre", 0): "no block stands before resid_pre 0",
    ("steering-vectors", "resid_pre", 0): "no block stands before resid_pre 0",
    ("svec", "resid_post", 2): "none stands after resid_post 2",
    ("persona", "resid_post", 2): "read after the model's final norm",
}
SAID = [(to, *at) for to in SUFFIX_OF for at in AT if (to, *at) not in REFUSED]


def direction(site="resid_pre", layer=2):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    return from_vector(vector, Provenance(layer, site, -1, method="mean_diff"))


def exported(model, folder, to, site="resid_pre", layer=2) -> Path:
    path = folder / f"d{SUFFIX_OF[to]}"
    path.write_bytes(written_as(direction(site, layer), ALPHA, to, model, "qwen2"))
    return path


def ours(model, site="resid_pre", layer=2):
    hook = steer(direction(site, layer), ALPHA, layer=layer, site=site, pos="all")
    return last_logits(model, Tokens(IDS, torch.ones_like(IDS)), [hook])[0]


def unsteered(model):
    return last_logits(model, Tokens(IDS, torch.ones_like(IDS)))[0]


@pytest.mark.parametrize(("to", "site", "layer"), SAID)
def test_what_is_written_is_read_back_at_its_place_and_length(to, site, layer, qwen, tmp_path):
    path = exported(qwen, tmp_path, to, site, layer)
    own = direction(site, layer)
    if to != "persona":  # a plain stack of tensors, which does not name its site
        found = read_direction(path, layer, site)
        assert (found.provenance.site, found.provenance.layer) == (site, layer)
    found = read_direction(path)
    torch.testing.assert_close(found.unit, own.unit, atol=1e-6, rtol=0)
    if to != "neuronpedia":  # alpha is its default strength, beside a unit vector
        assert found.norm == pytest.approx(ALPHA, rel=1e-6)
    boundary, at = {"resid_pre": 0, "resid_post": 1}, found.provenance
    assert at.layer + boundary[at.site] == layer + boundary[site]


@pytest.mark.parametrize(("to", "site", "layer"), REFUSED)
def test_what_a_format_cannot_say_is_refused_with_the_reason(to, site, layer, qwen):
    with pytest.raises(DialError, match=REFUSED[to, site, layer]):
        written_as(direction(site, layer), ALPHA, to, qwen, "qwen2")


@pytest.mark.parametrize("to", SUFFIX_OF)
def test_other_sites_and_a_vector_of_nothing_are_refused(to, qwen):
    with pytest.raises(DialError, match="between two blocks, and this direction is for attn_out"):
        written_as(direction("attn_out"), ALPHA, to, qwen, "qwen2")
    with pytest.raises(DialError, match="an alpha of 0 makes no vector to add"):
        written_as(direction(), 0.0, to, qwen, "qwen2")


def test_no_format_counts_positions_from_the_end():
    check_everywhere("all")
    for pos in (-1, "generated", slice(-3, None)):
        with pytest.raises(DialError, match="cannot be exported: these formats add to every token"):
            check_everywhere(pos)


# What a tool does with its file, written down from its source for those that do not install here:
# (block, whether at its input, the vector at strength 1).


def cast(path):
    held = json.loads(path.read_text())
    ((n, vector),) = held["directions"].items()
    assert set(held["explained_variances"]) == {n}
    return int(n), True, torch.tensor(vector)


def persona(path):
    rows = torch.load(path, weights_only=True)
    assert rows.shape == (4, 32)
    (n,) = rows.abs().sum(1).nonzero().flatten().tolist()
    return n, True, rows[n]


def neuronpedia(path):
    held = json.loads(path.read_text())
    at_input = held["hookType"] == "hook_resid_pre"
    vector = torch.tensor(held["vector"]) * held["vectorDefaultSteerStrength"]
    return held["layerNumber"], at_input, vector


def vllm_lens(path):
    held = json.loads(path.read_text())
    packed = held["activations"]
    raw = np.frombuffer(base64.b64decode(packed["data"]), dtype=packed["dtype"])
    (n,) = held["layer_indices"]
    return n, False, held["scale"] * torch.from_numpy(raw.reshape(packed["shape"]).copy())[0]


READERS = {"svec": cast, "persona": persona, "neuronpedia": neuronpedia, "vllm-lens": vllm_lens}


@pytest.mark.parametrize(("to", "site", "layer"), [one for one in SAID if one[0] in READERS])
def test_plain_transformers_under_the_file_gives_our_logits(to, site, layer, qwen, tmp_path):
    block, at_input, vector = READERS[to](exported(qwen, tmp_path, to, site, layer))
    source = str(qwen.cfg.model_name)
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    layers = plain.model.layers
    if at_input:
        layers[block].register_forward_pre_hook(lambda module, args: (args[0] + vector, *args[1:]))
    else:
        layers[block].register_forward_hook(lambda module, args, out: out + vector)
    with torch.no_grad():
        logits = plain(IDS).logits[0, -1]
    torch.testing.assert_close(logits, ours(qwen, site, layer), atol=1e-4, rtol=0)
    assert (logits - unsteered(qwen)).abs().max() > 0.1


def test_a_control_vector_has_what_llama_cpp_asks_for_and_nothing_that_it_refuses(qwen, tmp_path):
    reader = GGUFReader(exported(qwen, tmp_path, "gguf"))
    assert [tensor.name for tensor in reader.tensors] == ["direction.1"]
    assert reader.tensors[0].tensor_type.name == "F32"
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "qwen2"


def llama_file(folder, path):
    """The tiny Qwen2 as llama.cpp's model file, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, writer = model.config, GGUFWriter(path, "qwen2")
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    names = {
        "layers.": "blk.",
        "self_attn.o_proj": "attn_output",
        "self_attn.": "attn_",
        "mlp.": "ffn_",
        "_proj": "",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "embed_tokens": "token_embd",
        "lm_head": "output",
    }
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("model.")
        for theirs, its in names.items():
            name = name.replace(theirs, its)
        name = "output_norm.weight" if name == "norm.weight" else name
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


INSTALLED = {  # format, packages alone, packages with what they require, tolerance
    "lm-eval": ("lm-eval", (), ("lm-eval==0.4.13",), 1e-5),
    "steering-vectors": ("steering-vectors", ("steering-vectors==0.12.2",), (), 1e-5),
    "repeng": ("gguf", ("repeng==0.4.0",), (), 1e-5),
    "llama.cpp": ("gguf", ("xllamacpp==2026.10.11549",), (), 3e-3),  # its cache is in float16
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "architecture"),
    [
        *((tool, "Qwen2") for tool in INSTALLED),
        ("lm-eval", "GPTNeoX"),  # repeng does not know it; llama_file writes Qwen2
        ("steering-vectors", "GPTNeoX"),
    ],
)
def test_the_tool_itself_gives_our_logits_under_its_file(tool, architecture, tmp_path, request):
    to, alone, whole, tolerance = INSTALLED[tool]
    python = tool_python(request.config.cache, alone, whole)
    model = str(tiny.folder(architecture, tmp_path / "model"))
    loaded = load_model(model, "cpu", "float32")
    if tool == "llama.cpp":
        model = str(llama_file(model, tmp_path / "model.gguf"))
    script, out = Path(__file__).with_name("interchange_tools.py"), tmp_path / "logits.npy"
    file = exported(loaded, tmp_path, to)
    typed = [
        str(python),
        str(script),
        tool,
        model,
        str(file),
        json.dumps(IDS[0].tolist()),
        str(out),
    ]
    made = subprocess.run(typed, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr[-2000:]
    logits = torch.from_numpy(np.load(out)).float()
    off = float((logits - ours(loaded)).abs().max())
    print(f"{tool}: largest logit difference {off:.2g}")
    assert off < tolerance
    for wrong in (unsteered(loaded), ours(loaded, "resid_pre", 1)):  # not steered; one block off
        assert (logits - wrong).abs().max() > 0.1


# Files that others write, and files that are none.


def as_json(held, path):
    path.write_text(json.dumps(held))
    return path


V = [3.0, 0.0, -4.0]


def packed(array, dtype="float32", original="torch.float32", zstd=True):
    raw = np.asarray(array).tobytes()
    data = zstandard.ZstdCompressor(level=1).compress(raw) if zstd else raw
    held = {"data": base64.b64encode(data).decode(), "dtype": dtype, "original_dtype": original}
    return held | {"shape": list(np.shape(array))} | ({"compression": "zstd"} if zstd else {})


def test_files_as_the_tools_write_them_are_read(tmp_path):
    svec = {"model_type": "llama", "directions": {"4": [V], "5": [[1.0, 1.0, 1.0]]}}
    found = read_direction(as_json(svec, tmp_path / "a.svec"), 4)
    assert (found.provenance.site, found.norm) == ("resid_pre", 5.0)
    half = torch.tensor([V, V], dtype=torch.bfloat16).view(torch.int16).numpy()
    lens = {"activations": packed(half, "int16", "torch.bfloat16"), "layer_indices": [3, 9]}
    found = read_direction(as_json(lens | {"scale": 2.0}, tmp_path / "l.json"), 10, "resid_pre")
    assert (found.provenance.layer, found.norm) == (10, 10.0)
    one = {"steering_vector": torch.tensor(V), "steering_coefficient": -2.0, "action": "add"}
    torch.save({"layers.7": one | {"bias": None, "head_index": None}}, tmp_path / "e.pt")
    found = read_direction(tmp_path / "e.pt")
    assert (found.provenance.site, found.provenance.layer) == ("resid_post", 7)
    torch.testing.assert_close(found.unit, -torch.tensor(V) / 5)
    rows = torch.arange(15.0).reshape(5, 3) + 1
    torch.save(rows, tmp_path / "p.pt")
    torch.testing.assert_close(read_direction(tmp_path / "p.pt", 2).unit, rows[2] / rows[2].norm())


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"a": 1, "b": 2}, r"holds the keys 'a', 'b': expected directions \(\.svec\); activations"),
        ([1, 2], "holds a list: expected directions"),
        ({"directions": {}}, "directions must be layers to vectors"),
        ({"directions": {"x": V}}, "a layer of directions must be a whole number from 0 up"),
        ({"directions": {"1": ["a"]}}, "the direction of layer 1 must be a list of numbers"),
        ({"directions": {"1": [10**400]}}, "the direction of layer 1 must be a list of numbers"),
        ({"vector": V, "layerNumber": 1, "hookType": "mlp"}, "unknown hookType 'mlp'"),
        ({"vector": V, "layerNumber": True, "hookType": "hook_resid_pre"}, "layerNumber must be"),
        ({"activations": {"data": "AAAA"}, "layer_indices": [1]}, "the keys 'data': expected data"),
        ({"activations": packed([V], zstd=False), "layer_indices": [1]}, "24 bytes where shape"),
        (
            {"activations": packed(np.float32([V])), "layer_indices": [1, 2]},
            r"activations of shape \[1, 3\] for layer_indices \[1, 2\]",
        ),
        (
            {"activations": packed(np.float32([V])), "layer_indices": [1], "norm_match": True},
            "norm_match or position_indices, which steer in another way",
        ),
        (
            {"activations": packed(np.float32([V])) | {"data": "AAAA"}, "layer_indices": [1]},
            "is not zstd",
        ),
        (
            {"activations": packed(np.zeros(9**6, "f4")) | {"shape": [1, 3]}, "layer_indices": [1]},
            r"its data has 13 bytes where shape \[1, 3\] has 12",  # and not two million
        ),
    ],
)
def test_json_that_is_no_direction_says_what_it_has(held, message, tmp_path):
    with pytest.raises(DialError, match=message) as error:
        read_direction(as_json(held, tmp_path / "d.json"), 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"layer_activations": {3: [1.0]}}, "layer_activations must be layers to tensors"),
        (
            {"layer_activations": {3: torch.ones(3)}, "layer_type": "mlp"},
            "layer_type 'mlp': expected decoder_block",
        ),
        ({"layers.3.mlp": {"steering_vector": torch.ones(3)}}, r"at 'layers\.3\.mlp': expected a"),
        (
            {"layers.3": {"steering_vector": torch.ones(3), "action": "clamp"}},
            "has action 'clamp' and head_index None at layers.3: expected add and None",
        ),
        ({"layers.3": {"steering_vector": 1.0, "action": "add"}}, "must be a tensor"),
        ({"layers.3": {"steering_vector": torch.ones(3).to("meta")}}, r"numbers left out \(meta\)"),
        (torch.zeros(4, 3), "4 rows of zeros: no direction is zero"),
    ],
)
def test_tensors_that_steer_in_another_way_are_refused(held, message, tmp_path):
    torch.save(held, tmp_path / "d.pt")
    with pytest.raises(DialError, match=message):
        read_direction(tmp_path / "d.pt", 3)


def test_the_check_of_a_file_is_what_steering_does(qwen):
    found = steering_check(qwen, direction(), ALPHA, "how to bake bread")
    ids = torch.tensor([found["token_ids"]])
    tokens = Tokens(ids, torch.ones_like(ids))
    hook = steer(direction(), ALPHA, layer=2, pos="all")
    moved = last_logits(qwen, tokens, [hook])[0] - last_logits(qwen, tokens)[0]
    assert float(moved[found["token"]]) == pytest.approx(found["change"], abs=1e-4)
    assert float(moved.abs().max()) == pytest.approx(abs(found["change"]), abs=1e-4)
    with pytest.raises(DialError, match=r"moves no logit .* raise --alpha"):
        steering_check(qwen, direction(), 1e-6, "how to bake bread")


def test_the_script_writes_a_file_and_its_check_and_takes_every_format(qwen_folder, tmp_path):
    script = script_case.load("export_direction")
    assert tuple(SUFFIX_OF) == script.FORMATS
    file = tmp_path / "d.safetensors"
    directions.save(direction(), file)
    rows = [{"text": t, "subset": "BENIGN"} for t in tiny.sentences(4)]
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    typed = {"model": str(qwen_folder), "prompts": str(prompts), "alpha": 0.5}
    for to in ("gguf", "svec"):  # the second is made from the first
        script.main(script.Flags(direction=str(file), to=to, **typed))
        file = tmp_path / f"{file.stem}_{to}{SUFFIX_OF[to]}"
        check = json.loads(Path(f"{file}.check.json").read_text())
        assert (check["format"], abs(check["change"]) > check["tolerance"]) == (to, True)
    assert direction_at(str(file)).provenance.layer == 2
    with pytest.raises(DialError, match="these formats add to every token"):
        script.main(script.Flags(direction=str(file), pos="-1", **typed))


@pytest.mark.parametrize("to", SUFFIX_OF)
def test_without_layer_a_direction_is_used_at_the_layer_that_its_file_records(to, qwen, tmp_path):
    path = str(exported(qwen, tmp_path, to))
    assert layers_to_use(path, (), "resid_pre") == (2,)
    assert layers_to_use(path, (), "resid_post") == ((2,) if to == "persona" else (1,))
    assert layers_to_use(path, (2,), "resid_pre") == (2,)
    assert layers_to_use(None, (), "resid_pre") == (20,)


def test_our_own_file_names_the_same_place_at_the_other_site_too(tmp_path):
    """What leaves block 1 enters block 2; a layer that is asked for is taken as it is."""
    path = tmp_path / "d.safetensors"
    directions.save(direction("resid_post", 1), path)
    at = read_direction(path, site="resid_pre").provenance
    assert (at.site, at.layer) == ("resid_pre", 2)
    assert read_direction(path, 1, "resid_pre").provenance.layer == 1
    assert read_direction(path, site="attn_out").provenance.layer == 1


@pytest.mark.parametrize("name", ["eval_direction_on_xstest", "capability", "score_models"])
def test_a_file_of_several_layers_gives_each_layer_its_own(name, small_material, tmp_path):
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    torch.save(rows, tmp_path / "stack.pt")
    out = tmp_path / "run"
    mine = ["--layer=1,2", f"--direction={tmp_path / 'stack.pt'}", "--alphas=-1,1", "--n-random=1"]
    own = {word.split("=")[0] for word in mine}
    usual = [w for w in arguments(small_material, name) if w.split("=")[0] not in own]
    cli.run(script_case.load(name).main, [*usual, *mine, f"--out={out}"])
    for layer in (1, 2):
        kept = directions.load(out / f"direction_layer{layer}.safetensors")
        assert kept.provenance.layer == layer
        torch.testing.assert_close(kept.unit, rows[layer] / rows[layer].norm())


def takers(file, small_material, folder):
    """The command lines that steer by a direction, without a layer."""
    study = [word for word in arguments(small_material, "score_models") if "batch" not in word]
    few = {
        "score_models": ["--alphas=-1,1"],
        "capability": ["--alphas=1", "--n-items=2", "--n-texts=2", "--n=2", "--n-replies=2"],
        "eval_direction_on_xstest": ["--alphas=1"],
        "decompose_direction": ["--gap=0", "--n-pairs=4", "--n-top=2", "--n-permutations=19"],
    }
    for name, more in few.items():
        short = [] if name in ("score_models", "decompose_direction") else ["--max-new-tokens=2"]
        out = f"--out={folder / name}"
        yield name, [*study, *more, *short, "--n-random=1", f"--direction={file}", out]
    least = ["--reference=contrast", "--n-random=1", "--n-permutations=19", "--n-test=8"]
    least += ["--n-replies=3", "--max-new-tokens=2", f"--out={folder / 'verify'}"]
    yield "verify_direction", [str(file), *study, *least]


def test_every_experiment_takes_a_file_of_another_tool_or_a_run_where_it_stands(
    small_material, qwen, tmp_path
):
    file = exported(qwen, tmp_path, "gguf")  # output of block 1, the input of block 2
    for name, typed in takers(file, small_material, tmp_path / "file"):
        cli.run(script_case.load(name).main, typed)
        ran = tmp_path / "file" / ("verify" if name == "verify_direction" else name)
        (kept,) = ran.glob("direction*.safetensors")
        at = directions.load(kept).provenance
        assert at.layer + (at.site == "resid_post") == 2, name
    for name, typed in takers(ran, small_material, tmp_path / "run"):
        cli.run(script_case.load(name).main, [*typed, "--dry-run"])


def test_a_layer_of_a_file_for_who_writes_it(small_material, tmp_path):
    torch.save(torch.randn(3, 32), tmp_path / "stack.pt")
    ((_, typed),) = [
        one
        for one in takers(tmp_path / "stack.pt", small_material, tmp_path)
        if one[0] == "decompose_direction"
    ]
    main = script_case.load("decompose_direction").main
    with pytest.raises(SystemExit):
        cli.run(main, [*typed, "--dry-run"])  # which of three?
    cli.run(main, [*typed, "--layer=2", "--dry-run"])


def test_all_layers_are_none_of_a_directions_own():
    with pytest.raises(DialError, match="expected different layers such as 20 or 20,21,23; not"):
        own_layers_of("all")
    assert own_layers_of([1, 2]) == (1, 2)
