"""What an upload of LeRobot's trainer would fail of, or let out, is known before the run loads anything."""

import re
import shlex
import shutil
import sys

import pytest
from lerobot.configs import parser
from lerobot.configs.train import TrainPipelineConfig
from lerobot.scripts import lerobot_train

from ofp_vla.checkpoints.assets import tiny_base
from ofp_vla.lerobot_seams.parsing import parse_training
from tests.hub.loopback import STRANGER
from tests.support.checkpoints import save_adapter

NAME = "ada/run"
LORA = ("--peft.method_type=LORA", "--peft.r=4")


def started(output, *options):
    """The trainer's refusal, None where it would start, and then whether W&B gets no weights."""
    sys.argv = ["lerobot-train", "--dataset.repo_id=ada/data", f"--output_dir={output}", *options]

    @parser.wrap()
    def begin(cfg: TrainPipelineConfig) -> bool:
        cfg.validate()
        return cfg.wandb.disable_artifact

    try:
        return None, begin()
    except Exception as error:
        return f"{type(error).__name__}: {error}", None


@pytest.fixture(scope="module")
def parsed():
    """What LeRobot's parser reads of its sources is read here: clients are forks of this process."""
    parse_training(["--policy.type=pi05_ofp", "--policy.push_to_hub=false", "--dataset.repo_id=ada/data"])


@pytest.fixture
def start(client, tmp_path, parsed):
    def run(*options, base=None, **environment):
        place = base or tiny_base()
        words = [f"--policy.path={place}", "--policy.device=cpu", *options]
        return client.call(started, tmp_path / "run", *words, **environment)

    return run


PUSH = ("--policy.push_to_hub=true", f"--policy.repo_id={NAME}")


def test_push_that_will_work_is_let_through_and_makes_nothing_yet(hub, start):
    assert start(*PUSH, *LORA)[0] is None
    assert start(*PUSH)[0] is None
    assert hub.repositories == {}
    hub.create(NAME)
    assert start(*PUSH, *LORA)[0] is None
    assert len(hub.repositories[NAME].history()) == 0


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        ((), {"HF_TOKEN": ""}, r"hf auth login|HF_TOKEN"),
        ((), {"HF_TOKEN": "hf_" + "w" * 34}, r"token was refused"),
        ((), {"HF_TOKEN": STRANGER}, r"token is of 'bob' and may write to bob"),
        ((), {"HF_HUB_OFFLINE": "1"}, r"HF_HUB_OFFLINE=1.*push_to_hub=false"),
        (("--policy.repo_id=run",), {}, r"'run' is not a repository; give owner/name"),
        (("--policy.repo_id=ada/my run",), {}, r"not a repository"),
        (("--policy.repo_id=eve/run",), {}, r"may write to ada"),
        (("--save_checkpoint=false",), {"ACCELERATE_USE_FSDP": "true"}, r"FSDP.*save_checkpoint=true"),
        (("--job_name=hf_" + "x" * 34,), {}, r"SecretFound.*train_config.json.*Hugging Face token"),
    ],
    ids=[
        "no login",
        "bad token",
        "stranger",
        "offline",
        "no owner",
        "space",
        "other owner",
        "FSDP",
        "secret",
    ],
)
def test_push_that_will_fail_is_refused_at_the_start(hub, start, options, environment, words):
    refused, _ = start(*PUSH, *LORA, *options, **environment)
    assert refused is not None
    assert re.search(words, refused), refused
    assert "\n" not in refused
    assert hub.repositories == {}
    assert start("--policy.push_to_hub=false", *LORA, **environment)[0] is None


def test_public_repository_is_not_taken_for_the_private_one_that_was_asked_for(hub, start):
    hub.create(NAME)
    assert "exists and is public" in start(*PUSH, *LORA, "--policy.private=true")[0]
    hub.repositories[NAME].private = True
    assert start(*PUSH, *LORA, "--policy.private=true")[0] is None


def test_right_to_read_alone_is_not_enough(hub, start):
    hub.create(NAME)
    hub.fail("POST", f"/api/models/{NAME}/preupload", 403)
    assert "the token lacks the permission" in start(*PUSH, *LORA)[0]


def test_adapter_on_a_base_of_this_machine_is_refused_and_the_advice_helps(hub, client, start, tmp_path):
    base = shutil.copytree(tiny_base(), tmp_path / "base")
    refused, _ = start(*PUSH, *LORA, base=base)
    assert f"would name its base as '{base}'" in refused
    # Whole weights need no base.
    assert start(*PUSH, base=base)[0] is None
    assert start(*LORA, "--policy.push_to_hub=false", base=base)[0] is None
    command = shlex.split(re.search(r"ofp-vla (push .*)", refused)[1])
    place = tmp_path / "run/checkpoints/last/pretrained_model"
    place.parent.mkdir(parents=True)
    save_adapter(place)
    pushed = client(*command)
    assert pushed.code == 0, pushed.error
    assert "model.safetensors" in hub.files(NAME)


def test_adapter_that_goes_on_is_judged_by_its_own_base(hub, start, adapter):
    assert start(*PUSH, base=adapter)[0] is None
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text().replace("ofp_vla/pi05_tiny_base", "/nowhere/base"))
    assert "would name its base as '/nowhere/base'" in start(*PUSH, base=adapter)[0]


def test_checkpoints_on_their_way_go_through_our_bundle_only(hub, client, start, adapter, tmp_path):
    refused, _ = start(*LORA, "--save_checkpoint_to_hub=true", f"--policy.repo_id={NAME}")
    assert "save_checkpoint_to_hub" in refused
    assert "base" in refused
    place = tmp_path / "run/checkpoints/000002/pretrained_model"
    place.parent.mkdir(parents=True)
    adapter.rename(place)
    text = re.search(r"ofp-vla (push .*)", refused)[1].replace("STEP", "000002")
    pushed = client(*shlex.split(text))
    assert pushed.code == 0, pushed.error
    files = hub.files(NAME, "000002")
    assert not any(str(tmp_path).encode() in content for content in files.values())
    assert "README.md" in files


def remote(output, *options):
    """The trainer itself, told to run elsewhere."""
    sys.argv = ["lerobot-train", "--dataset.repo_id=ada/data", f"--output_dir={output}", *options]
    try:
        lerobot_train.train()
    except Exception as error:
        return str(error)
    return None


def test_run_on_a_machine_without_the_plugin_is_refused_before_anything_is_sent(
    hub, client, adapter, tmp_path
):
    options = (f"--policy.path={tiny_base()}", "--job.target=a10g-small", *LORA)
    refused = client.call(remote, tmp_path / "run", *options)
    assert "LeRobot's image does not have lerobot_policy_ofp" in refused
    assert hub.repositories == {}
    assert not [request for request in hub.requests if request[0] in ("POST", "PUT")]


def test_weights_do_not_go_to_w_and_b_unscanned(start):
    assert start("--wandb.enable=true", "--policy.push_to_hub=false") == (None, True)
    assert start("--policy.push_to_hub=false") == (None, False)
