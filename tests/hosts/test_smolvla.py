"""What only SmolVLA has: variants of its architecture and prefix, precision, and a VLM that needs no Hub."""

import json

import pytest
import torch
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig

from ofp_vla.core import Query
from ofp_vla.counting import count
from ofp_vla.hosts.architectures.smolvla_arch import PUBLISHED, TINY, OfflineVLAFlowMatching, model_name
from ofp_vla.policies.smolvla_ofp.configuration_smolvla_ofp import SmolVLAOFPConfig
from ofp_vla.policies.smolvla_ofp.modeling_smolvla_ofp import SmolVLAOFPPolicy
from tests.support.stock import inputs, stock_velocity
from tests.support.tiny import (
    CAMERAS,
    HORIZON,
    WIDTH,
    observe,
    open_conditioning,
    tiny_batch,
    tiny_config,
    tiny_policy,
    train_head,
)

VARIANTS = {
    "published": {},
    "special image tokens": {"add_image_special_tokens": True},
    "padded prefix": {"prefix_length": 64},
    "no cross attention": {"attention_mode": "self_attn"},
    "fewer expert layers": {"num_expert_layers": 2, "self_attn_every_n_layers": -1},
    "all layers of the VLM": {"num_vlm_layers": -1},
}
SPECIAL = {"<fake_token_around_image>": 999, "<image>": 1000, "<global-img>": 962, "<end>": 1001}


def chunks():
    return torch.randn(3, HORIZON, WIDTH, generator=torch.Generator().manual_seed(0))


def times():
    t = torch.tensor([0.0, 0.3, 0.9])
    return t, torch.tensor([1.0, 0.6, 0.9])


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_have_lerobots_velocity_and_training_loss(variant):
    policy = tiny_policy(host="smolvla", **VARIANTS[variant])
    batch, z, (t, _) = tiny_batch(), chunks(), times()
    field = policy.host.bind(observe(policy, batch))
    with torch.no_grad():
        (velocity,) = field([Query(z, t, t)])
        torch.testing.assert_close(velocity, -stock_velocity(policy, batch, z, 1 - t), rtol=0, atol=1e-5)
        actions = policy.prepare_action(batch)
        noisy = (1 - t)[:, None, None] * z + t[:, None, None] * actions
        (velocity,) = field([Query(noisy, t, t)])
        loss = policy.model.forward(*inputs(policy, batch), actions, z, 1 - t)
    torch.testing.assert_close((velocity - (actions - z)).square(), loss, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_null_condition_of_a_variant_sees_neither_images_nor_words_nor_state(variant):
    policy = tiny_policy(host="smolvla", **VARIANTS[variant])
    train_head(policy)
    null = torch.tensor([True, False, True])
    query = Query(chunks(), *times(), null)
    with torch.no_grad():
        here, there = (
            policy.host.bind(observe(policy, tiny_batch(seed=seed)))([query])[0] for seed in (0, 5)
        )
    torch.testing.assert_close(here[null], there[null], rtol=0, atol=5e-6)
    assert (here[~null] - there[~null]).abs().max() > 1e-3


def test_pictures_that_are_padding_are_hidden_row_by_row_as_lerobot_hides_them():
    policy = tiny_policy(host="smolvla")
    shown = torch.tensor([True, False, True])
    batch, z, (t, _) = tiny_batch(), chunks(), times()
    with_padding = {**batch, f"{CAMERAS[1]}_padding_mask": shown}
    with torch.no_grad():
        (velocity,) = policy.host.bind(observe(policy, with_padding))([Query(z, t, t)])
        (whole,) = policy.host.bind(observe(policy, batch))([Query(z, t, t)])
    stock = stock_velocity(policy, with_padding, z, 1 - t)
    torch.testing.assert_close(velocity, -stock, rtol=0, atol=1e-5)
    assert torch.equal(velocity[shown], whole[shown])
    assert (velocity[1] - whole[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "settings", [{"dtype": "bfloat16"}, {"load_vlm_weights": True}], ids=lambda s: next(iter(s))
)
def test_bfloat16_is_lerobots_velocity_bit_for_bit(settings, monkeypatch):
    # The VLM's own weights cannot be downloaded here; what counts is the number format they ask for.
    monkeypatch.setattr("ofp_vla.hosts.smolvla.load_vlm_weights", lambda model, name: None)
    torch.manual_seed(0)
    policy = SmolVLAOFPPolicy(tiny_config("smolvla", attention="eager", **settings)).eval()
    open_conditioning(policy)
    dtypes = {p.dtype for n, p in policy.named_parameters() if ".vlm." in n}
    assert dtypes == {torch.bfloat16}
    batch, z, (t, r) = tiny_batch(), chunks(), times()
    # Prompts without padding: the host then runs LeRobot's own shapes.
    words = batch["observation.language.attention_mask"].sum(dim=1).min()
    for key in ("observation.language.tokens", "observation.language.attention_mask"):
        batch[key] = batch[key][:, :words]
    with torch.no_grad():
        (velocity,) = policy.host.bind(observe(policy, batch))([Query(z, t, r)])
    assert torch.equal(velocity, -stock_velocity(policy, batch, z, 1 - t))


def test_state_token_apart_from_images_and_words_is_the_same_prefix():
    policy = tiny_policy(host="smolvla")
    host, observation = policy.host, observe(policy, tiny_batch())
    with torch.no_grad():
        whole = host.encode(observation)
        parts = host.complete(host.encode_shared(observation), observation)
    assert torch.equal(whole.mask, parts.mask)
    real = whole.mask[:, None, :, None]
    for a, b in zip((*whole.keys, *whole.values), (*parts.keys, *parts.values), strict=True):
        torch.testing.assert_close(a * real, b * real, rtol=0, atol=1e-5)
    trained = host.encode(observation)
    assert trained.keys[-1].requires_grad
    policy.model.state_proj.requires_grad_(False)
    assert not host.encode(observation).keys[-1].requires_grad


def test_every_role_has_its_own_state_token():
    policy = tiny_policy(host="smolvla", total_steps=10)
    policy.host.roles.add("ema")
    observation = observe(policy, tiny_batch())
    with torch.no_grad():
        policy.model.state_proj.weight.add_(0.5)
    fields = policy.host.bind_all(observation, ["ema"])
    student, ema = fields["student"].prefix, fields["ema"].prefix
    assert policy.host.passes == {"prefix": 1, "state": 2}
    assert torch.equal(student.keys[-1][:, :, :-1], ema.keys[-1][:, :, :-1])
    assert (student.keys[-1][:, :, -1] - ema.keys[-1][:, :, -1]).abs().max() > 1e-3


def test_without_the_state_the_host_says_so():
    policy = tiny_policy(host="smolvla")
    observation = observe(policy, tiny_batch())
    blind = type(observation)(observation.images, observation.tokens, observation.token_mask)
    with pytest.raises(ValueError, match="SmolVLA needs the state"):
        policy.host.bind(blind).prefix  # noqa: B018


def test_unknown_divisions_of_layers_precisions_and_aloha_are_refused_by_name():
    with pytest.raises(ValueError, match=r"policy\.num_expert_layers: 3"):
        tiny_policy(host="smolvla", num_expert_layers=3)
    with pytest.raises(ValueError, match=r"policy\.dtype.*'int8'"):
        tiny_config("smolvla", dtype="int8")
    with pytest.raises(ValueError, match=r"policy\.adapt_to_pi_aloha"):
        tiny_config("smolvla", adapt_to_pi_aloha=True)


def test_published_size_is_built_without_the_hub():
    with torch.device("meta"):
        model = OfflineVLAFlowMatching(SmolVLAOFPConfig(device="cpu"))
    count = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in model.vlm_with_expert.named_children()
    }
    assert {name: round(n / 1e6) for name, n in count.items()} == {"vlm": 350, "lm_expert": 98}
    layer = model.vlm_with_expert.lm_expert.layers[1]
    assert tuple(layer.self_attn.k_proj.weight.shape) == (320, 320)
    assert layer.self_attn.q_proj.weight.dtype == torch.bfloat16
    assert (model.fake_image_token, model.global_image_token) == (49189, 49152)


def write_vlm(folder, weights=False):
    """SmolVLM's folder as the Hub has it: configuration, processor, tokenizer, and weights if asked for."""
    config = SmolVLMConfig(**json.loads(json.dumps(TINY)))
    if weights:
        SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    config.architectures = ["SmolVLMForConditionalGeneration"]
    config.save_pretrained(folder)
    words = {f"<{i}>": i for i in range(1024) if i not in SPECIAL.values()} | SPECIAL
    backend = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    extra = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end>",
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<2>", extra_special_tokens=extra)
    tokenizer.save_pretrained(folder)
    image = {"image_processor_type": "SmolVLMImageProcessor", "processor_class": "SmolVLMProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "SmolVLMProcessor"}))
    return folder


def stock_settings(config, folder):
    """The tiny policy's settings for LeRobot's own configuration class, which finds the VLM in `folder`."""
    names = ("num_vlm_layers", "resize_imgs_with_padding", "chunk_size", "n_action_steps", "max_action_dim")
    names += ("max_state_dim", "input_features", "output_features", "add_image_special_tokens")
    return {**{n: getattr(config, n) for n in names}, "vlm_model_name": str(folder), "device": "cpu"}


def test_checkpoint_of_lerobots_own_constructor_loads_with_only_the_head_new(tmp_path):
    folder = write_vlm(tmp_path / "vlm")
    config = tiny_config("smolvla", add_image_special_tokens=True)
    stock = SmolVLAPolicy(SmolVLAConfig(**stock_settings(config, folder))).eval()
    stock.save_pretrained(tmp_path / "stock")

    policy = SmolVLAOFPPolicy.from_pretrained(tmp_path / "stock")
    own, theirs = policy.state_dict(), stock.state_dict()
    assert {k for k in own if "interval_head" not in k} == theirs.keys()
    assert all(torch.equal(own[k], v) and own[k].dtype == v.dtype for k, v in theirs.items())
    batch, z, (t, _) = tiny_batch(), chunks(), times()
    with torch.no_grad():
        (velocity,) = policy.host.bind(observe(policy, batch))([Query(z, t, t)])
    torch.testing.assert_close(velocity, -stock_velocity(stock, batch, z, 1 - t), rtol=0, atol=1e-5)


def test_configuration_of_another_vlm_is_kept_in_the_checkpoint(tmp_path):
    folder = write_vlm(tmp_path / "vlm")
    settings = {"arch": "full", "vlm_model_name": str(folder), "tokenizer_name": "none"}
    policy = tiny_policy(host="smolvla", **settings)
    policy.save_pretrained(tmp_path / "policy")
    for path in folder.iterdir():
        path.unlink()
    loaded = SmolVLAOFPPolicy.from_pretrained(tmp_path / "policy")
    own = policy.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in loaded.state_dict().items())


def test_new_policy_starts_from_the_vlms_own_weights_where_asked_and_a_loaded_one_does_not_look(tmp_path):
    folder = write_vlm(tmp_path / "vlm", weights=True)
    settings = {"arch": "full", "vlm_model_name": str(folder), "load_vlm_weights": True}
    policy = SmolVLAOFPPolicy(tiny_config("smolvla", **settings))
    own = policy.model.vlm_with_expert.vlm.state_dict()
    theirs = load_file(folder / "model.safetensors")
    shared = own.keys() & theirs.keys()
    assert any("text_model.layers.3" in name for name in shared)
    assert all(torch.equal(own[name], theirs[name].bfloat16()) for name in shared)
    policy.save_pretrained(tmp_path / "policy")
    (folder / "model.safetensors").unlink()
    SmolVLAOFPPolicy.from_pretrained(tmp_path / "policy")


def test_a_copy_of_the_vlm_is_known_in_the_hubs_cache_and_in_a_windows_folder():
    name = next(iter(PUBLISHED))
    cached = f"/home/you/.cache/huggingface/hub/models--{name.replace('/', '--')}/snapshots/{'0a' * 20}"
    windows = "D:\\models\\" + name.split("/")[1]
    for place in (cached, cached + "/", cached.replace("/", "\\"), windows, windows + "\\"):
        assert model_name(place) == model_name(name), place
    assert model_name(cached.replace("500M", "256M")) != model_name(name)


def test_published_configuration_reads_as_transformers_reads_it(tmp_path):
    name, published = next(iter(PUBLISHED.items()))
    assert SmolVLAConfig().vlm_model_name == name
    SmolVLMConfig(**json.loads(json.dumps(published))).save_pretrained(tmp_path)
    text = AutoConfig.from_pretrained(tmp_path).text_config
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (15, 5, 64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("side", [16, 32, 64])
def test_whole_pictures_are_embedded_as_lerobot_does_without_a_wait(dtype, side):
    policy = tiny_policy(host="smolvla", dtype=dtype)
    pictures = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = policy.model.vlm_with_expert.embed_image(pictures)
        found = []
        assert count(lambda: found.append(policy.host._embed_image(pictures))).waits == 0
    assert torch.equal(found[0], expected)
