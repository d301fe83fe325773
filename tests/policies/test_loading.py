"""A checkpoint loads exactly or not at all: stock weights, wrong keys, broken files, revisions, no Hub."""

import json
import logging
import shutil

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig
from safetensors.torch import load_file, save_file

from ofp_vla.checkpoints.files import CheckpointFiles, read_weights
from ofp_vla.core.objectives import OFPConfig
from ofp_vla.errors import CheckpointError, DeviceError
from ofp_vla.hosts.roles import EMA, STUDENT, TEACHER
from ofp_vla.policies.checkpoint import load_policy
from tests.support.stock import stock_chunk, stock_policy
from tests.support.tiny import HORIZON, HOSTS, PARTS, WIDTH, tiny_batch, tiny_config, tiny_policy, train_head

HEAD = "model.interval_head."


@pytest.fixture(scope="module")
def saved(host, tmp_path_factory):
    """Folder of a policy with a trained head, and that policy."""
    folder = tmp_path_factory.mktemp("saved")
    policy = tiny_policy(host=host)
    train_head(policy)
    policy.save_pretrained(folder)
    return folder, policy


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved[0], tmp_path / "checkpoint")


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def without_head(weights):
    for key in [k for k in weights if k.startswith(HEAD)]:
        del weights[key]


def chunk(policy):
    noise = torch.randn(3, HORIZON, WIDTH, generator=torch.Generator().manual_seed(0))
    return policy.generate(tiny_batch(), noise=noise)


def test_saved_policy_comes_back_with_every_weight_and_the_same_chunk(host, saved):
    folder, policy = saved
    loaded = HOSTS[host].from_pretrained(folder)
    own = policy.state_dict()
    assert loaded.state_dict().keys() == own.keys()
    assert all(torch.equal(v, own[k]) for k, v in loaded.state_dict().items())
    assert torch.equal(chunk(loaded), chunk(policy))
    assert not loaded.training


@pytest.mark.parametrize("prefix", ["model.", ""], ids=["lerobot keys", "openpi keys"])
def test_stock_weights_load_with_only_the_head_new_and_it_starts_at_zero(
    host, saved, checkpoint, prefix, caplog
):
    policy = saved[1]
    rewrite(checkpoint, without_head)
    weights = {
        prefix + k.removeprefix("model."): v for k, v in load_file(checkpoint / "model.safetensors").items()
    }
    save_file(weights, checkpoint / "model.safetensors")
    with caplog.at_level(logging.INFO):
        loaded = HOSTS[host].from_pretrained(checkpoint, config=tiny_config(host=host))
    assert "no interval head" in caplog.text
    own = policy.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in loaded.state_dict().items() if HEAD not in k)
    assert not loaded.model.interval_head.output.weight.any()
    assert not loaded.model.interval_head.output.bias.any()


def test_checkpoint_that_lerobots_own_policy_saved_loads_and_samples_as_the_original(host, tmp_path):
    stock = stock_policy(host)
    stock.save_pretrained(tmp_path)
    config = tiny_config(host=host, sampler="host", num_inference_steps=10)
    loaded = HOSTS[host].from_pretrained(tmp_path, config=config)
    own = loaded.state_dict()
    assert {k for k in own if not k.startswith(HEAD)} == stock.state_dict().keys()
    assert all(torch.equal(own[k], v) for k, v in stock.state_dict().items())
    noise = torch.randn(3, HORIZON, WIDTH, generator=torch.Generator().manual_seed(0))
    expected = stock_chunk(stock, tiny_batch(), noise)
    torch.testing.assert_close(loaded.generate(tiny_batch(), noise=noise), expected, rtol=0, atol=5e-5)


def test_weights_made_under_other_fixed_settings_are_refused_with_the_option_to_pass(host, tmp_path):
    stock_policy(host).save_pretrained(tmp_path)
    config = tiny_config(host=host, max_period=8.0)
    with pytest.raises(CheckpointError, match=r"policy\.max_period is 8\.0.*--policy\.max_period=4\.0"):
        HOSTS[host].from_pretrained(tmp_path, config=config)


def shorten(weights, key):
    weights[key] = weights[key][:-1].clone()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w, key: w.pop(key), ("1 missing", "{key}")),
        (lambda w, key: w.update({"model.surplus": torch.zeros(1)}), ("1 unexpected", "model.surplus")),
        (shorten, ("wrong shape", "{key}", "{short}", "{shape}")),
        (lambda w, key: w.pop(HEAD + "output.bias"), ("1 missing", HEAD + "output.bias")),
        (lambda w, key: (without_head(w), w.pop(key)), ("missing", "{key}")),
    ],
    ids=["missing", "unexpected", "shape", "partial head", "stock and missing"],
)
def test_weights_that_do_not_match_are_an_error_that_names_the_keys(host, saved, checkpoint, change, words):
    key = PARTS[host].time
    rows, columns = saved[1].state_dict()[key].shape
    rewrite(checkpoint, lambda weights: change(weights, key))
    with pytest.raises(CheckpointError) as caught:
        HOSTS[host].from_pretrained(checkpoint)
    facts = {"key": key, "short": (rows - 1, columns), "shape": (rows, columns)}
    for word in (*(w.format(**facts) for w in words), str(checkpoint)):
        assert word in str(caught.value)


def test_truncated_weights_are_an_error_that_names_the_file(host, checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is corrupt or truncated"):
        HOSTS[host].from_pretrained(checkpoint)


def test_sharded_weights_load_and_a_lost_shard_is_an_error(host, saved, checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({k: weights[k] for k in keys}, checkpoint / file)
    index = {"weight_map": {k: file for file, keys in shards.items() for k in keys}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    (checkpoint / "model.safetensors").unlink()
    assert torch.equal(chunk(HOSTS[host].from_pretrained(checkpoint)), chunk(saved[1]))
    (checkpoint / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors"):
        HOSTS[host].from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("content", "words"), [('{"weight_map":', "is not JSON"), ("{}", "weight_map"), ("[1]", "no object")]
)
def test_damaged_index_of_shards_is_an_error_that_names_the_file(checkpoint, content, words):
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(content)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=words) as caught:
        read_weights(CheckpointFiles(checkpoint))
    assert str(index) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "newer"}, r"policy\.objective: must be one of"),
        ({"newer": {"a": 1}}, "fields `newer` are not valid"),
        ({"type": "newer"}, "'newer'"),
        (None, "is not JSON"),
    ],
)
def test_configuration_that_means_nothing_here_is_an_error_that_names_the_file(checkpoint, changes, words):
    path = checkpoint / "config.json"
    text = path.read_text()
    path.write_text(text[:-20] if changes is None else json.dumps(json.loads(text) | changes))
    with pytest.raises(CheckpointError, match=rf"config\.json.*{words}"):
        load_policy(checkpoint)


def test_missing_folder_and_missing_config_are_errors(host, checkpoint):
    with pytest.raises(CheckpointError, match="/no/such/folder"):
        HOSTS[host].from_pretrained("/no/such/folder")
    (checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        HOSTS[host].from_pretrained(checkpoint)


def test_folder_with_pickled_weights_only_is_an_error_that_names_the_file(host, saved, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    torch.save(saved[1].state_dict(), checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors.*pytorch_model\.bin"):
        HOSTS[host].from_pretrained(checkpoint)


def test_another_policy_type_is_an_error_that_names_it(host, checkpoint):
    ACTConfig(device="cpu", push_to_hub=False)._save_pretrained(checkpoint)
    with pytest.raises(CheckpointError, match="'act' policy"):
        HOSTS[host].from_pretrained(checkpoint)


def test_loading_in_part_is_refused(host, checkpoint):
    with pytest.raises(CheckpointError, match="strict=False"):
        HOSTS[host].from_pretrained(checkpoint, strict=False)


def trained_policy(host="pi05", **changes):
    """A policy after one step whose EMA and teacher differ from the student."""
    policy = tiny_policy(host=host, total_steps=10, ofp=OFPConfig(first_leg="teacher"), **changes)
    roles = policy._prepare_roles()
    with torch.no_grad():
        for weight in roles.tensors(STUDENT).values():
            weight.add_(0.1)
    policy.update()
    return policy


def test_ema_and_teacher_of_a_run_come_back_bit_for_bit(host, tmp_path):
    policy = trained_policy(host=host)
    policy.save_pretrained(tmp_path)
    loaded = HOSTS[host].from_pretrained(tmp_path)
    assert loaded.config.trained_steps == 1
    roles = loaded.host.roles
    assert roles.available == {STUDENT, EMA, TEACHER}
    own = {role: policy.host.roles.tensors(role) for role in roles.available}
    for role, tensors in own.items():
        assert roles.tensors(role).keys() == tensors.keys()
        assert all(torch.equal(roles.tensors(role)[k], v) for k, v in tensors.items())
    name = PARTS[host].time
    assert len({own[role][name][0, 0].item() for role in own}) == 3
    loaded._prepare_roles()
    assert all(torch.equal(roles.tensors(TEACHER)[k], v) for k, v in own[TEACHER].items())


def test_ema_file_of_other_tensors_is_an_error_that_names_it(host, tmp_path):
    trained_policy(host=host, train_expert_only=False).save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    config.train_expert_only = True
    with pytest.raises(CheckpointError, match=r"ema\.safetensors.*(paligemma|vlm)"):
        HOSTS[host].from_pretrained(tmp_path, config=config)


def test_base_under_an_adapter_keeps_its_own_ema_to_itself(host, tmp_path):
    trained_policy(host=host, train_expert_only=False).save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    config.train_expert_only = config.use_peft = True
    assert HOSTS[host].from_pretrained(tmp_path, config=config).host.roles.available == {STUDENT}


def write_hub_cache(cache, name, revisions):
    """The Hub client's own cache layout: refs name commits, snapshots hold their files."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    for number, (revision, policy) in enumerate(revisions.items()):
        commit = f"{number:x}" * 40
        (repository / "refs" / revision).write_text(commit)
        policy.save_pretrained(repository / "snapshots" / commit)


def test_revision_and_cache_folder_choose_the_weights_of_a_hub_checkpoint(host, tmp_path):
    first, second, elsewhere = (tiny_policy(host=host, seed=seed) for seed in range(3))
    write_hub_cache(tmp_path / "one", "team/policy", {"main": first, "v2": second})
    write_hub_cache(tmp_path / "two", "team/policy", {"main": elsewhere})

    def load(cache, **hub):
        return HOSTS[host].from_pretrained("team/policy", cache_dir=tmp_path / cache, **hub)

    def same(a, b):
        return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())

    assert same(load("one"), first)
    assert same(load("one", revision="v2"), second)
    assert same(load("one", revision="1" * 40, local_files_only=True, token=False), second)
    assert same(load("two"), elsewhere)
    assert not same(first, second)
    with pytest.raises(CheckpointError, match="team/policy"):
        load("one", revision="v3")


def test_hub_name_that_is_not_cached_is_an_error_offline(host):
    with pytest.raises(CheckpointError, match=r"team/unknown.*HF_HUB_OFFLINE"):
        HOSTS[host].from_pretrained("team/unknown")


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda", "'cuda' was asked for, and PyTorch"),
        ("graphics", "none that PyTorch knows"),
        ("cuda:7", "'cuda:7'"),
    ],
)
def test_a_device_that_is_asked_for_and_missing_is_an_error_not_the_cpu(device, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=said):
        load_policy("nowhere", device=device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match="there are 2: cuda:0 to cuda:1"):
        load_policy("nowhere", device="cuda:7")
