"""`lerobot-train` with the other objectives on the tiny policy: trains, saves, resumes, logs."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from ofp_vla.core.objectives import OBJECTIVES
from ofp_vla.hosts.roles import FAKE, STUDENT, TEACHER
from ofp_vla.policies import load_policy
from tests.support.tiny import HORIZON, WIDTH, tiny_batch
from tests.training.conftest import arguments, from_scratch

pytestmark = pytest.mark.slow

LORA = {"peft__method_type": "LORA", "peft__r": 4, "policy__optimizer_lr": 1e-2}
SETTINGS = {
    "imle": {
        "policy__objective": "imle",
        "policy__imle.teacher_samples": 2,
        "policy__imle.student_samples": 3,
        "policy__imle.teacher_steps": 2,
    },
    "onedp": {
        "policy__objective": "onedp",
        "policy__onedp.draws": 2,
        "policy__onedp.fake_lr_scale": 4.0,
        "policy__onedp.distill_ramp": "[0.0, 0.0]",
    },
    "drift": {
        "policy__objective": "drift",
        "policy__drift.match": "chunk",
        "policy__drift.temperatures": "[0.1, 0.3]",
    },
    "shortcut": {"policy__objective": "shortcut", "policy__shortcut.finest": 8},
    "snapflow": {"policy__objective": "snapflow", "policy__snapflow.alpha": 0.25},
    "meanflow": {"policy__objective": "meanflow", "policy__meanflow.power": 0.25},
    "consistency": {"policy__objective": "consistency", "policy__consistency.bins": 10},
}


@pytest.fixture(scope="session", params=["pi05", "smolvla"])
def host(request):
    """One host whose expert reads the state as text and one that has a projection of its own for it."""
    return request.param


def saved(run, step):
    return run / "checkpoints" / f"{step:06d}" / "pretrained_model"


def chunk(policy):
    noise = torch.randn(3, HORIZON, WIDTH, generator=torch.Generator().manual_seed(0))
    return policy.eval().generate(tiny_batch(), noise=noise)


def adapter(folder, role=""):
    return load_file(folder / role / "adapter_model.safetensors")


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def forget(checkpoint, block, setting):
    """Makes a checkpoint as old as before a setting was there."""
    for name in ("config.json", "train_config.json"):
        path = checkpoint / name
        config = json.loads(path.read_text())
        del (config if name == "config.json" else config["policy"])[block][setting]
        path.write_text(json.dumps(config))


# Each objective on one host; tests below and test_own_optimizer have imle and onedp on others.
RUNS = [
    ("smolvla", "imle"),
    ("pi05", "onedp"),
    ("smolvla", "drift"),
    ("pi05", "shortcut"),
    ("smolvla", "snapflow"),
    ("pi05", "meanflow"),
    ("smolvla", "consistency"),
]


@pytest.mark.parametrize(("host", "objective"), RUNS, indirect=["host"])
def test_lora_run_trains_saves_and_resumes(host, objective, images, base, tmp_path, train):
    run = tmp_path / "run"
    settings = {"policy__path": base, **LORA, **SETTINGS[objective]}
    policy = train(arguments(images, run, steps=2, **settings))
    assert policy.objective.roles == OBJECTIVES[objective]().roles
    config = json.loads((saved(run, 2) / "config.json").read_text())
    assert (config["objective"], config["trained_steps"]) == (objective, 2)
    assert config.keys() & OBJECTIVES.keys() == {objective}
    for name, value in SETTINGS[objective].items():
        block, _, field = name.removeprefix("policy__").partition(".")
        assert not field or str(config[block][field]) == str(value)
    assert any("lora_B" in name for name in moved(adapter(saved(run, 1)), adapter(saved(run, 2))))

    if objective == "imle":
        forget(saved(run, 2), "imle", "power")
    resumed = train([f"--config_path={saved(run, 2) / 'train_config.json'}", "--resume=true", "--steps=3"])
    assert (resumed.config.trained_steps, resumed.config.total_steps) == (3, 3)
    # A run that is older than the setting goes on by the square that it began with.
    assert objective != "imle" or resumed.config.imle.power == resumed.objective.config.power == 0
    loaded = load_policy(saved(run, 3))
    torch.testing.assert_close(chunk(loaded.policy), chunk(resumed), rtol=0, atol=0)
    assert (chunk(load_policy(saved(run, 2)).policy) - chunk(resumed)).abs().max() > 0


# Runs on the other host are above; what is new here, a role's file and its optimiser, knows no host.
@pytest.mark.parametrize("host", ["smolvla"], indirect=True)
def test_fake_network_is_saved_beside_the_student_and_comes_back_with_its_optimiser(
    host, images, base, tmp_path, train
):
    run = tmp_path / "run"
    settings = {"policy__path": base, **LORA, **SETTINGS["onedp"]}
    policy = train(arguments(images, run, steps=2, **settings))
    own = {k: v.detach().clone() for k, v in policy.host.roles.tensors(FAKE).items()}
    first, second = adapter(saved(run, 1), FAKE), adapter(saved(run, 2), FAKE)
    assert second.keys() == adapter(saved(run, 2)).keys()
    assert len(own) == len(second)
    assert any("lora_B" in name for name in moved(first, second))
    assert moved(second, adapter(saved(run, 2)))

    resumed = train([f"--config_path={saved(run, 2) / 'train_config.json'}", "--resume=true", "--steps=3"])
    third = adapter(saved(run, 3), FAKE)
    lr = 1e-2 * 4.0
    for name, tensor in third.items():
        # Adam moves an entry by its rate at most, and by much less than a fresh start would differ
        assert float((tensor - second[name]).abs().max()) < 1.5 * lr
    assert any("lora_A" in name for name in moved(second, third))
    assert FAKE in resumed.host.roles.available
    groups = load_file(saved(run, 3).parent / "training_state" / "optimizer_state.safetensors")
    assert len([k for k in groups if "exp_avg_sq" in k]) == len(own) + len(
        [p for p in resumed.host.roles.tensors(STUDENT).values() if p.requires_grad]
    )


@pytest.mark.parametrize("host", ["pi05"], indirect=True)
def test_teacher_is_the_base_that_the_run_started_from(images, words, tmp_path, train, base):
    settings = {"policy__path": base, **LORA, **SETTINGS["onedp"]}
    policy = train(arguments(images, tmp_path / "run", steps=2, **settings))
    start = load_policy(base).policy
    # Its limits are those of other data.
    start._guard = policy.guard
    with torch.no_grad(), policy.host.roles.use(TEACHER):
        again = chunk(policy)
    torch.testing.assert_close(again, chunk(start), rtol=0, atol=0)


def test_imle_trains_the_whole_expert_and_keeps_the_teacher_beside_it(host, images, words, tmp_path, train):
    settings = {**from_scratch(words, host), **SETTINGS["imle"]}
    policy = train(arguments(images, tmp_path / "run", steps=2, **settings))
    assert (saved(tmp_path / "run", 2) / "teacher.safetensors").exists()
    start = load_file(saved(tmp_path / "run", 1) / "teacher.safetensors")
    assert not moved(start, load_file(saved(tmp_path / "run", 2) / "teacher.safetensors"))
    assert policy.config.trained_steps == 2


def test_onedp_on_the_whole_expert_is_refused_before_training(images, words, tmp_path, train):
    settings = {**from_scratch(words), **SETTINGS["onedp"]}
    with pytest.raises(ValueError, match=r"fake.*--peft.method_type=LORA"):
        train(arguments(images, tmp_path / "run", steps=1, **settings))


@pytest.mark.parametrize("host", ["smolvla"], indirect=True)
def test_every_step_logs_the_same_finite_numbers(images, words, base, tmp_path, train, monkeypatch):
    from ofp_vla.policies.one_step.policy import OneStepPolicy

    for objective, names in (
        ("imle", {"coverage", "fidelity", "draw_std", "teacher_std"}),
        ("onedp", {"distill", "fake", "score_gap", "draw_std", "distill_weight"}),
    ):
        logs = []
        forward = OneStepPolicy.forward

        def spy(self, *args, forward=forward, logs=logs, **kwargs):
            loss, log = forward(self, *args, **kwargs)
            logs.append(log)
            return loss, log

        with monkeypatch.context() as patch:
            patch.setattr(OneStepPolicy, "forward", spy)
            settings = {"policy__path": base, **LORA, **SETTINGS[objective]}
            train(arguments(images, tmp_path / objective, steps=2, **settings))
        assert [log.keys() for log in logs] == [names | {"ema_distance"}] * 2
        assert all(math.isfinite(value) for log in logs for value in log.values())
