"""Loading by name, by folder, embedded: Hugging Face's numbers, and one line when it fails."""

from __future__ import annotations

import json
import re

import hub_case
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from refusal_dial import hub
from refusal_dial.common import DialError
from refusal_dial.engine.score import score_grid
from refusal_dial.generate.decode import Decoding, generate
from refusal_dial.hooks import ablate, steer
from refusal_dial.model import loading as model
from refusal_dial.model.activations import collect
from refusal_dial.model.loading import check_layers, check_site, identity, load_model
from refusal_dial.model.tokens import last_logits, tokenize


@pytest.mark.parametrize("architecture", sorted(tiny.CONFIGS))
def test_a_local_folder_matches_its_hugging_face_logits_padded_batches_included(
    architecture, tmp_path
):
    folder = tiny.folder(architecture, tmp_path)
    loaded = load_model(str(folder), device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = tokenize(loaded, tiny.sentences(5))
    assert (tokens.mask == 0).any()
    ours = last_logits(loaded, tokens)
    positions = (tokens.mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        theirs = reference(tokens.ids, attention_mask=tokens.mask, position_ids=positions).logits
    torch.testing.assert_close(ours, theirs[:, -1], atol=1e-4, rtol=1e-4)
    for row in range(5):  # and padding changes nothing: each prompt alone gives the same
        alone = tokens.ids[row : row + 1, int((tokens.mask[row] == 0).sum()) :]
        with torch.no_grad():
            single = reference(alone).logits[:, -1]
        torch.testing.assert_close(ours[row : row + 1], single, atol=1e-4, rtol=1e-4)


def test_stories260k_reproduces_its_golden_tokens(shared):
    folder = shared / "models" / "stories260K"
    golden = json.loads((folder / "golden_greedy.json").read_text())
    loaded = load_model(str(folder), device="cpu")
    out = loaded.generate(
        torch.tensor([golden["prompt_ids"]]),
        max_new_tokens=len(golden["greedy_ids"]),
        do_sample=False,
        stop_at_eos=False,
        prepend_bos=False,
        return_type="tokens",
        verbose=False,
    )
    assert out[0, len(golden["prompt_ids"]) :].tolist() == golden["greedy_ids"]


def test_identity_names_the_model_and_notices_other_weights(qwen, qwen_folder, tmp_path):
    mine = identity(qwen)
    assert (mine.architecture, mine.n_layers, mine.d_model) == ("Qwen2ForCausalLM", 3, 32)
    assert (mine.device, mine.dtype) == ("cpu", "float32")
    again = identity(load_model(str(qwen_folder), device="cpu"))
    tiny.folder("Qwen2", tmp_path)
    tiny.hf_model("Qwen2", seed=1).save_pretrained(tmp_path)
    other = identity(load_model(str(tmp_path), device="cpu"))
    assert len(mine.revision) == 16
    assert again.architecture == other.architecture
    assert again.revision != other.revision


def test_parameters_are_frozen_and_half_precision_loads(qwen_folder):
    half = load_model(str(qwen_folder), device="cpu", dtype="bfloat16")
    assert identity(half).dtype == "bfloat16"
    assert not any(p.requires_grad for p in half.original_model.parameters())


def test_device_and_dtype_are_told_with_a_reason(qwen_folder, caplog):
    with caplog.at_level("INFO", logger="refusal_dial"):
        load_model(str(qwen_folder))
    assert re.search(r"device \w+ \(.+\), dtype torch\.\w+ \(.+\)", caplog.text)


def test_an_unreachable_hub_gives_one_line_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(model, "hub_reachable", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DialError) as error:
        load_model("nobody/no-such-model")
    text = str(error.value)
    assert "'nobody/no-such-model' is neither a folder here nor in the local hub cache" in text
    assert "--model embedded" in text
    assert "\n" not in text


def two_commits(tmp_path):
    """Folders of two models, by the commits that they are on a hub."""
    commits = {hub_case.FIRST: tmp_path / "one", hub_case.SECOND: tmp_path / "two"}
    for seed, folder in enumerate(commits.values()):
        tiny.folder("Qwen2", folder)
        tiny.hf_model("Qwen2", seed=seed).save_pretrained(folder)
    return commits


def weights_of(loaded):
    return loaded.original_model.get_output_embeddings().weight


def test_a_hub_model_is_the_commit_that_its_revision_means_online_and_off(tmp_path, monkeypatch):
    """The same name and revision from the hub, from its cache, and on another machine."""
    commits, cache = two_commits(tmp_path), tmp_path / "hub"
    expected = {c: load_file(f / "model.safetensors") for c, f in commits.items()}
    refs = {"main": hub_case.FIRST, "v2": hub_case.SECOND}
    with hub_case.served("org/tiny", commits, refs) as (address, _):
        hub_case.use(monkeypatch, cache, address)
        online = [load_model("org/tiny", "cpu", revision=r) for r in (None, "v2")]
    hub_case.use(monkeypatch, cache)
    offline = [load_model("org/tiny", "cpu", revision=r) for r in (None, hub_case.SECOND)]
    for models in (online, offline):
        identities = [identity(one) for one in models]
        assert [one.name for one in identities] == ["org/tiny"] * 2
        assert [one.revision for one in identities] == [hub_case.FIRST, hub_case.SECOND]
        for one, loaded in zip(identities, models, strict=True):
            assert torch.equal(weights_of(loaded), expected[one.revision]["lm_head.weight"])
    with pytest.raises(DialError, match="'org/tiny' at revision 'v3' is neither a folder here nor"):
        load_model("org/tiny", "cpu", revision="v3")


def test_hub_ids_go_to_the_hub_client(monkeypatch, tmp_path):
    """The real loading call is made with the id as it is, and its failure is one line."""
    asked = {}

    def boot(name, **rest):
        asked.update(rest, name=name)
        raise OSError("Repository Not Found\nfor url")

    hub_case.use(monkeypatch, tmp_path)
    monkeypatch.setattr(model, "hub_reachable", lambda: True)
    monkeypatch.setattr(model.TransformerBridge, "boot_transformers", boot)
    with pytest.raises(DialError, match="could not be loaded: Repository Not Found for url"):
        load_model("Qwen/Qwen2.5-0.5B-Instruct", device="cpu", dtype="bfloat16", revision="main")
    assert asked["name"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert asked["trust_remote_code"] is False
    assert asked["dtype"] is torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "./missing"}, "no folder './missing'"),
        ({"name": "/nowhere/at/all"}, "no folder '/nowhere/at/all'"),
        ({"name": ""}, "no folder ''"),
        ({"name": "embedded", "device": "cdua"}, "unknown device 'cdua': did you mean 'cuda'"),
        ({"name": "embedded", "dtype": "float8"}, "unknown dtype 'float8'"),
    ],
)
def test_errors_before_loading(arguments, message):
    with pytest.raises(DialError) as error:
        load_model(**arguments)
    assert message in str(error.value)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(DialError, match=r"holds no model: config\.json is not in it"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(DialError, match="could not be loaded"):
        load_model(str(tmp_path))
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(DialError, match="is a file"):
        load_model(str(tmp_path / "weights.bin"))


def test_truncated_weights_are_one_line(tmp_path):
    tiny.folder("Qwen2", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DialError, match="could not be loaded"):
        load_model(str(tmp_path), device="cpu")


def test_a_layer_out_of_range_names_the_range(qwen):
    assert check_layers(qwen, [0, 2]) == (0, 2)
    with pytest.raises(DialError, match="layer 3 is out of range: this model has layers 0 to 2"):
        check_layers(qwen, [1, 3])


def test_a_site_the_architecture_lacks_names_those_it_has(qwen):
    assert check_site(qwen, "resid_mid") == "resid_mid"
    parallel = tiny.bridge("GPTNeoX")
    with pytest.raises(DialError, match=r"GPTNeoXForCausalLM has no site 'resid_mid': it has"):
        check_site(parallel, "resid_mid")


def test_the_hub_is_asked_once_and_offline_mode_is_believed(monkeypatch):
    hub.hub_reachable.cache_clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.hub_reachable() is False
    hub.hub_reachable.cache_clear()


# --- larger than one device


@pytest.fixture(scope="module")
def split(qwen_folder):
    """The tiny model with its first block kept on the CPU and two on disk."""
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb"), "cpu")
    places |= {"lm_head": "cpu", "model.layers.0": "cpu"}
    places |= {"model.layers.1": "disk", "model.layers.2": "disk"}
    return load_model(str(qwen_folder), device_map=places)


def test_a_model_split_over_cpu_and_disk_is_the_same_model(split, qwen):
    weights = dict(split.original_model.named_parameters())
    assert {str(w.device) for n, w in weights.items() if ".layers.2." in n} == {"meta"}
    assert identity(split).revision == identity(qwen).revision
    unit = torch.nn.functional.normalize(torch.arange(32.0), dim=0)
    grid = [[], [steer(unit, 4.0, layer=1)], [ablate(unit, layer=2, site="attn_out")]]
    scores, completions, seen = [], [], []
    for one in (split, qwen):
        tokens = tokenize(one, tiny.sentences(4))
        scores.append(score_grid(one, tokens, grid, lambda logits: logits[:, 7].double()))
        completions.append(generate(one, tokens, grid, Decoding(max_new_tokens=4)))
        seen.append(collect(one, tokens, range(3))[0])
    assert (scores[1][0] - scores[1][1]).abs().min() > 1e-3  # steering does something
    torch.testing.assert_close(*scores, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(*seen, atol=1e-6, rtol=1e-6)
    assert completions[0] == completions[1]


def test_what_the_replay_cannot_run_is_left_to_the_plain_path_and_said(qwen_folder, caplog):
    loaded = load_model(str(qwen_folder), device_map={"": "disk"})
    with caplog.at_level("INFO", "refusal_dial"):
        score_grid(loaded, tokenize(loaded, ["a b"]), [[]], lambda logits: logits[:, 7].double())
    assert "plain forward passes for Qwen2ForCausalLM: its modules are managed" in caplog.text


def test_a_map_by_name_is_left_to_accelerate(qwen_folder, qwen):
    loaded = load_model(str(qwen_folder), device_map="auto")
    tokens = tokenize(qwen, tiny.sentences(3))
    torch.testing.assert_close(last_logits(loaded, tokens), last_logits(qwen, tokens))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"device": "cpu", "device_map": "auto"}, "--device cpu and --device-map auto: give one"),
        ({"device_map": "atuo"}, "unknown device map 'atuo': did you mean 'auto'"),
        ({"device_map": {"": "disk", "lm_head": 0}}, "device_map mixes CPU/disk offload"),
    ],
)
def test_a_device_map_that_cannot_be_used_is_refused(qwen_folder, given, error):
    with pytest.raises(DialError, match=error):
        load_model(str(qwen_folder), **given)


@pytest.mark.parametrize("architecture", sorted(tiny.CONFIGS))
def test_the_head_reads_the_last_positions_laid_out_one_after_another(architecture, tmp_path):
    """Of a slice and frozen weights torch copies the unembedding for every prompt."""
    loaded = load_model(str(tiny.folder(architecture, tmp_path)), device="cpu")
    read: list[torch.Tensor] = []
    loaded.unembed.original_component.register_forward_pre_hook(
        lambda module, given: read.append(given[0])
    )
    last_logits(loaded, tokenize(loaded, tiny.sentences(5)))
    assert [hidden.is_contiguous() for hidden in read] == [True]
    assert read[0].shape[:2] == (5, 1)
