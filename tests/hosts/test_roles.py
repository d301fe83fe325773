"""Weight roles over one copy of the base: whole tensors and LoRA adapters behave the same."""

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from peft import IA3Config, PeftModel

from ofp_vla.core import Query
from ofp_vla.core.ema import EmaDecay
from ofp_vla.hosts.roles import EMA, STUDENT, TEACHER, AdapterRoles, TensorRoles, has_adapters
from tests.support.tiny import HORIZON, WIDTH, observe, tiny_batch, tiny_policy, train_head

KINDS = {"whole tensors": TensorRoles, "LoRA": AdapterRoles}


def build(kind, host="pi05", **changes):
    """A policy, wrapped by LeRobot's own PEFT entry for "LoRA"."""
    policy = tiny_policy(host=host, total_steps=10, **changes)
    train_head(policy)
    if kind == "LoRA":
        policy.config.pretrained_path = "base"
        assert isinstance(
            policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4}), PeftModel
        )
    assert isinstance(policy.host.roles, KINDS[kind])
    return policy


@torch.no_grad()
def move_student(policy, seed=0):
    g = torch.Generator().manual_seed(seed)
    for weight in policy.host.roles.tensors(STUDENT).values():
        weight.add_(0.05 * torch.randn(weight.shape, generator=g))


@torch.no_grad()
def answer(policy, role):
    g = torch.Generator().manual_seed(0)
    query = Query(torch.randn(3, HORIZON, WIDTH, generator=g), torch.full((3,), 0.2), torch.full((3,), 0.9))
    return policy.host.bind(observe(policy, tiny_batch()), role)([query])[0]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_teacher_is_the_base_and_the_ema_starts_as_the_student(host, kind):
    policy = tiny_policy(host=host)
    train_head(policy)
    base = answer(policy, STUDENT)

    policy = build(kind, host)
    roles = policy.host.roles
    roles.add(TEACHER)
    move_student(policy)
    roles.add(EMA)
    assert roles.available == {STUDENT, EMA, TEACHER}
    # Of another policy, whose tensors lie elsewhere in memory: some kernels round by the place.
    torch.testing.assert_close(answer(policy, TEACHER), base, rtol=0, atol=1e-5)
    assert torch.equal(answer(policy, EMA), answer(policy, STUDENT))
    assert (answer(policy, STUDENT) - base).abs().max() > 1e-3
    assert roles.distance() == 0


def test_switching_restores_the_student_exactly_also_after_an_error(host, kind):
    policy = build(kind, host)
    roles = policy.host.roles
    for role in (EMA, TEACHER):
        roles.add(role)
    move_student(policy)
    weights = {n: p.detach().clone() for n, p in policy.named_parameters()}
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    pointers = {n: p.data_ptr() for n, p in policy.named_parameters()}
    before = answer(policy, STUDENT)
    for role in (EMA, TEACHER):
        assert (answer(policy, role) - before).abs().max() > 1e-3
        with pytest.raises(ZeroDivisionError), roles.use(role):
            raise ZeroDivisionError
    assert torch.equal(answer(policy, STUDENT), before)
    assert {n: p.data_ptr() for n, p in policy.named_parameters()} == pointers
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == trained
    assert all(torch.equal(p, weights[n]) for n, p in policy.named_parameters())


def test_unknown_role_is_refused_by_name(host, kind):
    policy = build(kind, host)
    with pytest.raises(KeyError, match="fake"), policy.host.roles.use("fake"):
        pass


@pytest.mark.filterwarnings("error:Already found")  # PEFT's warning of what is meant so
def test_adding_roles_leaves_what_is_trained_as_it_was(host, kind):
    policy = build(kind, host)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    for role in (EMA, TEACHER):
        policy.host.roles.add(role)
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == trained
    if kind == "LoRA":
        assert trained
        assert all(".lora_" in n or ".interval_head." in n for n in trained)
        assert all(".default." in n for n in trained)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_passes_through_the_emas_answer_to_its_query_and_to_no_weight(host, kind, checkpointing):
    policy = build(kind, host, gradient_checkpointing=checkpointing).train()
    policy.host.roles.add(EMA)
    move_student(policy)
    field = policy.host.bind(observe(policy, tiny_batch()), EMA)
    z, way, look = torch.randn(3, 3, HORIZON, WIDTH, generator=torch.Generator().manual_seed(1))
    t, r = torch.full((3,), 0.2), torch.full((3,), 0.9)
    point = z.clone().requires_grad_()
    (field([Query(point, t, r)])[0] * look).sum().backward()
    assert all(p.grad is None for p in policy.parameters())
    with torch.no_grad():
        ahead, behind = (field([Query(z + h * way, t, r)])[0] for h in (0.002, -0.002))
    difference = ((ahead - behind) * look).sum().item() / 0.004
    assert (point.grad * way).sum().item() == pytest.approx(difference, rel=0.02, abs=0.02)


def test_no_gradient_reaches_ema_or_teacher_and_switching_does_not_disturb_the_students(host, kind):
    policy = build(kind, host).train()
    roles = policy._prepare_roles()
    roles.add(TEACHER)
    move_student(policy)
    observation = observe(policy, tiny_batch())
    z = torch.randn(3, HORIZON, WIDTH, generator=torch.Generator().manual_seed(1))
    query = Query(z, torch.full((3,), 0.2), torch.full((3,), 0.9))

    def gradients(roles_between):
        policy.zero_grad()
        (velocity,) = policy.host.bind(observation)([query])
        for role in roles_between:
            (other,) = policy.host.bind(observation, role)([query])
            assert not other.requires_grad
        velocity.square().mean().backward()
        return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}

    alone, between = gradients(()), gradients((EMA, TEACHER))
    assert alone
    assert alone.keys() == between.keys()
    assert all(torch.equal(alone[n], between[n]) for n in alone)
    assert not any(".ema" in n for n in between)
    for role in roles.available - {STUDENT, TEACHER}:
        assert all(t.grad is None and not t.requires_grad for t in roles.tensors(role).values())


def test_update_moves_the_ema_towards_the_student_by_the_scheduled_share(host, kind):
    policy = build(kind, host, ema_decay=0.7)
    roles = policy._prepare_roles()
    assert EMA in roles.available
    for step in range(3):
        move_student(policy, seed=step)
        student = {k: v.detach().clone() for k, v in roles.tensors(STUDENT).items()}
        before = {k: v.clone() for k, v in roles.tensors(EMA).items()}
        assert before.keys() == student.keys()
        policy.update()
        decay = EmaDecay(0.7)(step)
        assert decay == pytest.approx((1 + step) / (10 + step))
        for name, tensor in roles.tensors(EMA).items():
            torch.testing.assert_close(tensor, decay * before[name] + (1 - decay) * student[name])
            assert torch.equal(roles.tensors(STUDENT)[name], student[name])
    assert policy.config.trained_steps == 3
    assert roles.distance() > 0


def test_ema_of_a_bfloat16_policy_is_kept_in_float32(host, kind):
    policy = build(kind, host, dtype="bfloat16")
    roles = policy._prepare_roles()
    assert {t.dtype for t in roles.tensors(EMA).values()} == {torch.float32}
    loss, _ = policy.train()(tiny_batch())
    loss.backward()
    policy.update()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "plain"])
@pytest.mark.parametrize("expert_only", [True, False], ids=["expert", "everything"])
def test_step_below_the_resolution_of_bfloat16_moves_every_whole_weight(host, autocast, expert_only):
    policy = build("whole tensors", host, dtype="bfloat16", train_expert_only=expert_only).train()
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-5, weight_decay=0.0)
    trained = policy.host.roles.tensors(STUDENT)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    if expert_only:
        assert torch.bfloat16 in {p.dtype for p in policy.host.vlm_parameters()}
    before = {name: p.detach().clone() for name, p in trained.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, _ = policy(tiny_batch())
    loss.backward()
    optimizer.step()
    policy.update()
    for name, p in trained.items():
        if p.grad is not None:
            felt = p.grad.abs() > 1e-6
            assert ((p != before[name]) | ~felt).all(), name
    assert sum(p.grad is not None and bool((p != before[n]).any()) for n, p in trained.items()) > 20
    assert torch.isfinite(policy.eval().generate(tiny_batch())).all()


def test_bfloat16_training_goes_on_with_the_digits_that_its_checkpoint_has(host, tmp_path):
    policy = build("whole tensors", host, dtype="bfloat16")
    policy.get_optim_params()
    move_student(policy)
    policy.update()
    policy.save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    config.pretrained_path = tmp_path
    resumed = type(policy).from_pretrained(tmp_path, config=config)
    name = next(n for n, p in resumed.named_parameters() if p.requires_grad and p.dtype == torch.bfloat16)
    changed = resumed.get_parameter(name).data.mul_(2).float()
    resumed.get_optim_params()
    own = resumed.host.roles.tensors(STUDENT)
    assert torch.equal(own[name], changed)
    exact = policy.host.roles.tensors(STUDENT)
    assert all(torch.equal(tensor, exact[n]) for n, tensor in own.items() if n != name)


def test_saved_tensors_of_another_model_are_refused_by_name(host):
    roles = build("whole tensors", host).host.roles
    assert isinstance(roles, TensorRoles)
    tensors = {k: v.detach().clone() for k, v in roles.tensors(STUDENT).items()}
    name = next(iter(tensors))
    tensors[name] = tensors[name][..., :-1]
    with pytest.raises(ValueError, match=name):
        roles.load(EMA, tensors)
    tensors["surplus"] = torch.zeros(1)
    with pytest.raises(ValueError, match="surplus"):
        roles.load(EMA, tensors)
    assert roles.available == {STUDENT}


@pytest.mark.parametrize("first", [STUDENT, EMA])
def test_autocast_gives_each_role_its_own_weights_whichever_runs_first(host, kind, first):
    policy = build(kind, host)
    roles = policy.host.roles
    roles.add(EMA)
    move_student(policy)
    roles_in_order = (first, STUDENT if first == EMA else EMA)

    alone = []
    for name in roles_in_order:
        with torch.autocast("cpu", torch.bfloat16):
            alone += with_grad(policy, [name])
    with torch.autocast("cpu", torch.bfloat16):
        together = with_grad(policy, roles_in_order)
    assert not torch.equal(*alone)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def with_grad(policy, names):
    """Answers of the roles; autocast keeps copies only of weights that record a graph."""
    g = torch.Generator().manual_seed(0)
    query = Query(torch.randn(3, HORIZON, WIDTH, generator=g), torch.full((3,), 0.2), torch.full((3,), 0.9))
    return [policy.host.bind(observe(policy, tiny_batch()), n)([query])[0].detach() for n in names]


def test_other_peft_methods_are_refused_by_name(host):
    policy = tiny_policy(host=host)
    policy.config.pretrained_path = "base"
    with pytest.raises(ValueError, match=r"LoRA.*MISS"):
        policy.wrap_with_peft(peft_cli_overrides={"method_type": "MISS", "r": 4})
    config = IA3Config(target_modules=["up_proj"], feedforward_modules=["up_proj"])
    with pytest.raises(ValueError, match=r"LoRA.*IA3"):
        policy.wrap_with_peft(peft_config=config)
    assert not has_adapters(policy)
