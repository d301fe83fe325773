"""`ofp_vla.patch` around LeRobot's own policies: the same memory, the same answers, and the way back."""

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from peft import IA3Config, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

import ofp_vla
from ofp_vla.core import Query
from ofp_vla.core.objectives import OFPConfig
from ofp_vla.errors import UnsupportedPolicyError
from ofp_vla.hosts.roles import EMA, STUDENT
from ofp_vla.policies import load_policy
from ofp_vla.policies.sampling import Sampling
from tests.support.stock import stock_chunk, stock_policy
from tests.support.tiny import (
    ACTIONS,
    HORIZON,
    HOSTS,
    PARTS,
    WIDTH,
    observe,
    random_stats,
    tiny_batch,
    train_head,
    write_tokenizer,
)

SETTINGS = {"arch": "tiny", "total_steps": 10, "ofp": OFPConfig(endpoint_steps=2)}


@pytest.fixture(params=HOSTS)
def host(request):
    return request.param


def noise():
    return torch.randn(3, HORIZON, WIDTH, generator=torch.Generator().manual_seed(0))


def pointers(policy):
    return {name: p.data_ptr() for name, p in policy.named_parameters()}


def with_lora(policy, folder="base"):
    policy.config.pretrained_path = folder
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
    assert isinstance(wrapped, PeftModel)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.2)
    return wrapped


def step(policy, rate=1e-3):
    """One step of plain gradient descent on what the policy trains."""
    policy.train()
    groups = policy.get_optim_params()
    policy(tiny_batch())[0].backward()
    optimizer = torch.optim.SGD(groups, lr=rate)
    optimizer.step()
    optimizer.zero_grad()
    policy.update()
    policy.eval()


def test_a_change_of_the_original_acts_in_the_next_chunk_of_the_patched_policy():
    stock = stock_policy("pi05")
    patched = ofp_vla.patch(stock, **SETTINGS)
    before = patched.draw(tiny_batch(), noise=noise()).chunk
    stock.load_state_dict({name: 1.1 * weight for name, weight in stock.state_dict().items()})
    after = patched.draw(tiny_batch(), noise=noise()).chunk
    assert (after - before).abs().max() > 1e-2
    patched.reset()
    assert torch.equal(patched.draw(tiny_batch(), noise=noise()).chunk, after)


def test_patched_policy_holds_the_memory_of_the_original_and_one_new_head(host):
    stock = stock_policy(host)
    before = pointers(stock)
    patched = ofp_vla.patch(stock, **SETTINGS)
    assert type(patched) is HOSTS[host]
    found = pointers(patched)
    new = {name for name in found if ".interval_head." in name}
    assert len(new) == 4
    assert {name: at for name, at in found.items() if name not in new} == before
    assert pointers(stock) == before
    assert not patched.training
    assert (patched.config.chunk_size, patched.config.device) == (stock.config.chunk_size, "cpu")


def test_patched_policy_gives_the_originals_velocities_and_its_ten_step_chunks(host):
    stock = stock_policy(host)
    patched = ofp_vla.patch(stock, **SETTINGS)
    batch, z = tiny_batch(), noise()
    chunk = patched.generate(batch, noise=z, sampling=Sampling("host", 10, False))
    torch.testing.assert_close(chunk, stock_chunk(stock, batch, z), rtol=0, atol=5e-5)
    field = patched.host.bind(observe(patched, batch))
    with torch.no_grad():
        (mean,) = field([Query(z, torch.zeros(3), torch.ones(3))])
        (now,) = field([Query(z, torch.zeros(3), torch.zeros(3))])
    assert torch.equal(mean, now)
    assert patched.predict_action_chunk(batch, noise=z).shape == (3, HORIZON, ACTIONS)


def test_original_predicts_bit_for_bit_as_before_beside_an_adapter_trained_on_the_patched_one(host):
    stock = stock_policy(host)
    batch, z = tiny_batch(), noise()
    before, names = stock_chunk(stock, batch, z), set(stock.state_dict())
    patched = ofp_vla.patch(stock, **SETTINGS)
    cold = patched.generate(batch, noise=z)
    wrapped = with_lora(patched)
    step(wrapped)
    assert (patched.generate(batch, noise=z) - cold).abs().max() > 1e-3
    assert torch.equal(stock_chunk(stock, batch, z), before)

    back = ofp_vla.unpatch(wrapped)
    assert back is stock
    assert type(back) is HOSTS[host].stock_class
    assert set(back.state_dict()) == names
    assert torch.equal(stock_chunk(back, batch, z), before)


def test_training_in_full_changes_the_originals_weights_which_come_back(host):
    stock = stock_policy(host)
    frozen = {name for name, p in stock.named_parameters() if not p.requires_grad}
    before = pointers(stock)
    patched = ofp_vla.patch(stock, train_expert_only=True, **SETTINGS)
    trained = {name for name, p in patched.named_parameters() if p.requires_grad}
    assert trained
    assert not any(PARTS[host].vlm in name for name in trained)
    # what the patched one freezes is its own affair
    assert {name for name, p in stock.named_parameters() if not p.requires_grad} == frozen
    value = stock.state_dict()[PARTS[host].time].clone()
    step(patched)
    back = ofp_vla.unpatch(patched)
    assert pointers(back) == before
    assert not torch.equal(back.state_dict()[PARTS[host].time], value)


def test_freezing_can_be_undone_by_an_override(host):
    stock = stock_policy(host, train_expert_only=True)
    patched = ofp_vla.patch(stock, train_expert_only=False, **SETTINGS)
    assert any(p.requires_grad for n, p in patched.named_parameters() if PARTS[host].vlm in n)
    assert not any(p.requires_grad for n, p in stock.named_parameters() if PARTS[host].vlm in n)


def test_weights_that_moved_on_the_patched_policy_come_back_moved(host):
    stock = stock_policy(host)
    patched = ofp_vla.patch(stock, **SETTINGS)
    patched.to(torch.float64)
    assert {p.dtype for p in ofp_vla.unpatch(patched).parameters()} == {torch.float64}
    assert pointers(stock) == {n: at for n, at in pointers(patched).items() if ".interval_head." not in n}


def test_policy_inside_peft_comes_back_inside_peft_with_the_head_in_its_adapter(host, tmp_path):
    stock = stock_policy(host)
    stock.save_pretrained(tmp_path / "base")
    original = with_lora(stock, tmp_path / "base")
    batch, z = tiny_batch(), noise()
    before, names = stock_chunk(stock, batch, z), set(original.state_dict())
    write_tokenizer(tmp_path / "words")
    patched = ofp_vla.patch(original, tokenizer_name=str(tmp_path / "words"), **SETTINGS)
    assert isinstance(patched, PeftModel)
    policy = patched.get_base_model()
    assert type(policy) is HOSTS[host]
    shared = {at for name, at in pointers(patched).items() if "interval_head" not in name}
    assert shared == set(pointers(original).values())
    chunk = patched.generate(batch, noise=z, sampling=Sampling("host", 10, False))
    torch.testing.assert_close(chunk, before, rtol=0, atol=5e-5)

    step(patched)
    assert {STUDENT, EMA} <= policy.host.roles.available
    assert any("interval_head" in name for name in policy.host.roles.tensors(EMA))
    patched.save_pretrained(tmp_path / "adapter")
    policy.config.save_pretrained(tmp_path / "adapter")
    for part in make_pre_post_processors(policy.config, dataset_stats=random_stats()):
        part.save_pretrained(tmp_path / "adapter")
    loaded = load_policy(tmp_path / "adapter").policy
    assert torch.equal(loaded.generate(batch, noise=z), patched.generate(batch, noise=z))

    back = ofp_vla.unpatch(patched)
    assert back is original
    assert set(back.state_dict()) == names
    assert set(back.peft_config) == {"default"}
    layers = [m for m in back.modules() if isinstance(m, BaseTunerLayer)]
    assert {name for m in layers for name in m.lora_A} == {"default"}
    assert back.peft_config["default"].modules_to_save in (None, [])


def test_patched_policy_saves_as_its_own_checkpoint(host, tmp_path):
    patched = ofp_vla.patch(stock_policy(host), **SETTINGS)
    train_head(patched)
    patched.save_pretrained(tmp_path)
    assert PreTrainedConfig.from_pretrained(tmp_path).type == f"{host}_ofp"
    loaded = HOSTS[host].from_pretrained(tmp_path)
    assert torch.equal(
        loaded.generate(tiny_batch(), noise=noise()), patched.generate(tiny_batch(), noise=noise())
    )


def test_unsupported_policy_is_refused_with_the_list_of_what_is():
    image = PolicyFeature(FeatureType.VISUAL, (3, 32, 32))
    act = ACTPolicy(
        ACTConfig(
            device="cpu",
            pretrained_backbone_weights=None,
            dim_model=16,
            n_heads=2,
            dim_feedforward=16,
            input_features={"observation.images.top": image},
            output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTIONS,))},
        )
    )
    with pytest.raises(
        UnsupportedPolicyError, match=r"ACTPolicy.*PI05Policy.*PI0Policy.*SmolVLAPolicy"
    ) as caught:
        ofp_vla.patch(act)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(UnsupportedPolicyError, match=r"ACTPolicy was not made by ofp_vla\.patch"):
        ofp_vla.unpatch(act)


def test_patching_twice_other_adapters_and_bad_settings_are_refused_by_name(host):
    stock = stock_policy(host)
    patched = ofp_vla.patch(stock, **SETTINGS)
    with pytest.raises(UnsupportedPolicyError, match="one-step policy already"):
        ofp_vla.patch(patched)
    with pytest.raises(ValueError, match=r"nfe.*no such field"):
        ofp_vla.patch(stock, nfe=1)
    with pytest.raises(ValueError, match=r"policy\.sampler.*'euler'"):
        ofp_vla.patch(stock, sampler="euler")
    with pytest.raises(ValueError, match="config is a ACTConfig"):
        ofp_vla.patch(stock, ACTConfig(device="cpu"))
    other = get_peft_model(stock, IA3Config(target_modules=["up_proj"], feedforward_modules=["up_proj"]))
    with pytest.raises(UnsupportedPolicyError, match=r"LoRA.*IA3"):
        ofp_vla.patch(other)
