"""What stock tools load: LeRobot's own policy classes read the exports and act in ten steps as ours does."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors.torch import load_file
from torch import nn

from ofp_vla.checkpoints.assets import tiny_base, tiny_tokenizer
from ofp_vla.checkpoints.files import WEIGHTS
from ofp_vla.checkpoints.merge import merge
from ofp_vla.errors import CheckpointError
from ofp_vla.hosts.architectures.paligemma_arch import SIZES
from ofp_vla.hosts.pi05 import SizedPI05
from ofp_vla.interop.export import export, stock_config
from ofp_vla.policies.checkpoint import load_policy
from tests.support.checkpoints import observation
from tests.support.stock import stock_processors

EXPERT_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"
TIED = "paligemma_with_expert.paligemma.lm_head.weight"
EMBEDDING = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"


class TinyStock(PI05Policy):
    """LeRobot's π0.5 policy, loader included, around a core of the tiny size."""

    config_class = PI05Config
    name = "pi05"
    heads = False

    def __init__(self, config, **_):
        PreTrainedPolicy.__init__(self, config)
        self.init_rtc_processor()
        self.model = SizedPI05(config, SIZES["tiny"])
        if self.heads:
            self.model.paligemma_with_expert.paligemma.lm_head = nn.Linear(64, 1024, bias=False)
            self.model.paligemma_with_expert.gemma_expert.lm_head = nn.Linear(128, 1024, bias=False)
        self.reset()


class TinyStockWithHeads(TinyStock):
    """As published: with the output heads that nothing reads."""

    name = "pi05"
    heads = True


def sample(policy, batch):
    noise = torch.randn(1, 16, 14, generator=torch.Generator().manual_seed(4))
    return policy.eval().predict_action_chunk(batch, noise=noise)


def test_stock_policy_runs_the_merged_weights_in_ten_steps_as_our_host_sampler(adapter, tmp_path, capsys):
    export(adapter, tmp_path / "stock", format="lerobot-pi05")
    config = PreTrainedConfig.from_pretrained(tmp_path / "stock")
    assert type(config) is PI05Config
    assert config.num_inference_steps == 10
    stock = TinyStock.from_pretrained(tmp_path / "stock", config=config)
    assert "All keys loaded successfully" in capsys.readouterr().out
    before, after = make_pre_post_processors(config, pretrained_path=str(tmp_path / "stock"))

    merge(adapter, tmp_path / "merged")
    ours = load_policy(tmp_path / "merged", sampler="host", device="cpu")
    batch, own = before(observation()), ours.preprocess(observation())
    tokens = "observation.language.tokens"
    assert torch.equal(batch[tokens], own[tokens])
    # Ours ends in the action guard, which stock does not have.
    chunk, expected = ours.policy.guard(sample(stock, batch)), sample(ours.policy, own)
    torch.testing.assert_close(chunk, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(after(chunk), ours.postprocess(expected), rtol=0, atol=1e-4)


def test_published_stock_policy_takes_every_weight_of_a_file_without_output_heads(adapter, tmp_path, capsys):
    export(adapter, tmp_path / "stock", format="lerobot-pi05")
    config = PreTrainedConfig.from_pretrained(tmp_path / "stock")
    stock = TinyStockWithHeads.from_pretrained(tmp_path / "stock", config=config, strict=False)
    assert "Missing keys when loading state dict: 2 keys" in capsys.readouterr().out
    found = stock.state_dict()
    for name, weight in load_file(tmp_path / "stock" / WEIGHTS).items():
        assert torch.equal(found[name], weight), name
    # LeRobot's default is a strict load, which complains of the heads, and has copied the rest by then.
    found = TinyStockWithHeads.from_pretrained(tmp_path / "stock", config=config).state_dict()
    for name, weight in load_file(tmp_path / "stock" / WEIGHTS).items():
        assert torch.equal(found[name], weight), name


def paths_in(folder):
    """Files that name a place of this machine."""
    texts = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return [path.name for path, content in texts.items() if str(folder.parent.parent).encode() in content]


@pytest.mark.parametrize("kind", ["lerobot-pi05", "openpi", "merged"])
def test_what_is_written_can_be_moved_and_names_no_place_of_this_machine(adapter, tmp_path, kind):
    here, there = tmp_path / "here" / "out", tmp_path / "elsewhere" / "out"
    words = shutil.copytree(tiny_tokenizer(), tmp_path / "words")
    base = shutil.copytree(tiny_base(), tmp_path / "base")
    for path, changes in (
        (adapter / "config.json", {"tokenizer_name": str(words)}),
        (adapter / "adapter_config.json", {"base_model_name_or_path": str(base)}),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    record = json.loads((adapter / "train_config.json").read_text())
    record["policy"]["pretrained_path"] = record["dataset"]["root"] = str(base)
    (adapter / "train_config.json").write_text(json.dumps(record))
    merge(adapter, here) if kind == "merged" else export(adapter, here, format=kind)
    assert paths_in(here) == []
    shutil.copytree(here, there)
    for place in (here, words, base, adapter):
        shutil.rmtree(place)
    if kind == "merged":
        tokens = load_policy(there, device="cpu").preprocess(observation())["observation.language.tokens"]
    elif kind == "lerobot-pi05":
        config = PreTrainedConfig.from_pretrained(there)
        before, _ = make_pre_post_processors(config, pretrained_path=str(there))
        tokens = before(observation())["observation.language.tokens"]
    else:
        tokens = None
    expected = load_policy(tiny_base(), device="cpu").preprocess(observation())["observation.language.tokens"]
    assert tokens is None or torch.equal(tokens, expected)


def test_the_packaged_tokenizer_keeps_its_name_and_is_found_wherever_the_export_lies(tmp_path):
    export(tiny_base(), tmp_path / "here", format="lerobot-pi05")
    there = shutil.move(tmp_path / "here", tmp_path / "there")
    steps = json.loads((tmp_path / "there" / "policy_preprocessor.json").read_text())["steps"]
    (step,) = (step for step in steps if step["registry_name"] == "tokenizer_processor")
    assert step["config"]["tokenizer_name"] == "ofp_vla/tiny"
    config = PreTrainedConfig.from_pretrained(there)
    before, _ = make_pre_post_processors(config, pretrained_path=str(there))
    expected = load_policy(tiny_base(), device="cpu").preprocess(observation())
    name = "observation.language.tokens"
    assert torch.equal(before(observation())[name], expected[name])


@pytest.mark.parametrize("named", [None, "you/tok"])
def test_a_folder_in_lerobots_own_step_is_carried_or_gives_way_to_the_name_asked_for(tmp_path, named):
    words = shutil.copytree(tiny_tokenizer(), tmp_path / "tok")
    old = stock_processors(shutil.copytree(tiny_base(), tmp_path / "old"), "pi05", str(words))
    export(old, tmp_path / "out", format="lerobot-pi05", tokenizer=named)
    if named:
        steps = json.loads((tmp_path / "out" / "policy_preprocessor.json").read_text())["steps"]
        (step,) = (step for step in steps if step["registry_name"] == "tokenizer_processor")
        assert step["config"]["tokenizer_name"] == named
        return
    shutil.rmtree(words)
    config = PreTrainedConfig.from_pretrained(tmp_path / "out")
    before, _ = make_pre_post_processors(config, pretrained_path=str(tmp_path / "out"))
    expected = load_policy(tiny_base(), device="cpu").preprocess(observation())
    name = "observation.language.tokens"
    assert torch.equal(before(observation())[name], expected[name])


@pytest.mark.slow
def test_export_is_read_without_our_package(adapter, tmp_path):
    export(adapter, tmp_path / "stock", format="lerobot-pi05", tokenizer=str(tiny_tokenizer()))
    code = f"""
import sys
sys.modules["ofp_vla"] = None
from lerobot.configs import PreTrainedConfig
import lerobot.policies
from lerobot.policies.factory import make_pre_post_processors
config = PreTrainedConfig.from_pretrained({str(tmp_path / "stock")!r})
before, after = make_pre_post_processors(config, pretrained_path={str(tmp_path / "stock")!r})
print(config.type, type(before.steps[-2]).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["pi05", "TokenizerProcessorStep"]


def test_openpi_export_has_its_names_its_tied_head_and_its_settings(adapter, tmp_path):
    export(adapter, tmp_path / "openpi", format="openpi", asset_id="robot")
    merge(adapter, tmp_path / "merged")
    exported, merged = (load_file(tmp_path / name / WEIGHTS) for name in ("openpi", "merged"))
    assert not any(name.startswith("model.") or "interval_head" in name for name in exported)
    assert torch.equal(exported[TIED], merged[EMBEDDING])
    assert exported[EXPERT_HEAD].shape == (1024, 128)
    same = {n.removeprefix("model.") for n in merged if "interval_head" not in n and n != EMBEDDING}
    assert exported.keys() == same | {TIED, EXPERT_HEAD}
    assert all(torch.equal(exported[name], merged[f"model.{name}"]) for name in same)
    settings = json.loads((tmp_path / "openpi" / "config.json").read_text())
    assert (settings["action_dim"], settings["action_horizon"]) == (14, 16)


def test_openpi_export_loads_back_into_lerobot_with_the_same_weights(adapter, tmp_path):
    export(adapter, tmp_path / "openpi", format="openpi")
    export(adapter, tmp_path / "stock", format="lerobot-pi05")
    config = PreTrainedConfig.from_pretrained(tmp_path / "stock")
    direct = TinyStock.from_pretrained(tmp_path / "stock", config=config)
    back = TinyStockWithHeads.from_pretrained(tmp_path / "openpi", config=config)
    found = back.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in direct.state_dict().items())


def test_openpi_statistics_are_those_of_lerobots_normaliser(adapter, tmp_path):
    export(adapter, tmp_path / "openpi", format="openpi")
    stats = json.loads((tmp_path / "openpi/assets/ada/lift_bar/norm_stats.json").read_text())["norm_stats"]
    assert stats.keys() == {"state", "actions"}
    state = load_file(next(adapter.glob("policy_preprocessor*normalizer*")))
    for theirs, ours in (("state", "observation.state"), ("actions", "action")):
        for name in ("mean", "std", "q01", "q99"):
            np.testing.assert_allclose(stats[theirs][name], state[f"{ours}.{name}"].numpy(), rtol=1e-6)


@pytest.mark.parametrize(("format", "words"), [("lerobot-pi0", "'pi05' policy"), ("nothing", "openpi")])
def test_wrong_format_is_an_error_that_names_it(adapter, tmp_path, format, words):
    with pytest.raises((CheckpointError, ValueError), match=words):
        export(adapter, tmp_path / "x", format=format)
    assert not (tmp_path / "x").exists()


def test_stock_configuration_keeps_shared_values_and_nothing_of_ours():
    config = json.loads((tiny_base() / "config.json").read_text())
    stock = stock_config(config, "pi05")
    assert "ofp" not in stock
    assert "arch" not in stock
    assert stock["chunk_size"] == config["chunk_size"]
