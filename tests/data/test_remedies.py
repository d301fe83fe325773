"""Every remedy that `ofp-vla data check` prints is taken here, word for word; its finding is gone then."""

import ast
import shutil
from pathlib import Path

import pytest
from lerobot.policies.factory import make_pre_post_processors

import ofp_vla.data.checks
from tests.data.bench import Bench
from tests.data.troubles import TROUBLES
from tests.support.tiny import (
    ACTION_NAMES,
    random_stats,
    tiny_policy,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """A checkpoint that knows the names of its dimensions."""
    folder = tmp_path_factory.mktemp("base")
    names = {"observation.state": ACTION_NAMES, "action": ACTION_NAMES}
    policy = tiny_policy(tokenizer_name=str(tokenizer), dimension_names=names)
    for part in (policy, *make_pre_post_processors(policy.config, dataset_stats=random_stats())):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def bench(dataset: Path, recipe: Path, base: Path, clean: Path, few_frames_are_enough: None) -> Bench:
    return Bench(dataset, recipe, base, clean)


@pytest.mark.parametrize("name", list(TROUBLES))
def test_remedy_makes_its_finding_go(bench: Bench, name: str) -> None:
    spoil, by_hand = TROUBLES[name]
    marker = next(m for m in sorted(TROUBLES, key=len) if name.startswith(m))
    spoil(bench)
    findings = [f for f in bench.check() if f["severity"] in ("error", "warning") and marker in f["found"]]
    assert findings, f"nothing was found: {bench.check()}"
    spoilt = shutil.copytree(bench.dataset, bench.dataset.with_name("spoilt"))
    settings = list(bench.settings)
    for finding in findings:
        assert finding["remedies"], f"no remedy for {finding['found']}"
        for remedy in finding["remedies"]:
            shutil.rmtree(bench.dataset)
            bench.dataset = Path(shutil.copytree(spoilt, bench.dataset))
            bench.settings = list(settings)
            bench.take(remedy, by_hand)
            left = [f["found"] for f in bench.check() if f["severity"] in ("error", "warning")]
            assert finding["found"] not in left, f"{remedy} changes nothing"
            same = [text for text in left if marker in text]
            assert len(same) < len(findings), f"after {remedy} it says {same}"


def test_every_finding_with_a_remedy_has_its_trouble() -> None:
    told = [" ".join(marker.split()) for marker in TROUBLES]
    untried = []
    for path in sorted(Path(ofp_vla.data.checks.__file__).parent.glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            made = isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Finding"
            if made and len(call.args) > 3:
                text = " ".join(
                    " ".join(part.value.split())
                    for part in ast.walk(call.args[2])
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                )
                # A finding without words of its own has those of `order_problems`, which two troubles have.
                if text and not any(marker in text for marker in told):
                    untried.append(f"{path.name}:{call.lineno}: {text[:80]}")
    assert not untried
