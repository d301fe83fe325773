"""What the doctor advises, taken: afterwards the finding is gone."""

import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from huggingface_hub import constants
from packaging.requirements import Requirement

from ofp_vla.cli import doctor

ROOT = Path(__file__).resolve().parents[2]


def found(checks, status: str) -> dict[str, str]:
    """Name -> remedy of the checks with this status."""
    return {check.name: check.remedy for check in checks if check.status == status}


@pytest.mark.parametrize("name", ["lerobot", "torch", "peft"])
@pytest.mark.parametrize("have", ["0.0.1", None])
def test_package_that_the_remedy_installs_is_the_one_that_is_looked_for(monkeypatch, name: str, have) -> None:
    installed = {n: metadata.version(n) for n in (*doctor._VERSIONED, doctor.DISTRIBUTION)}
    good, installed[name] = installed[name], have

    def version(asked: str) -> str:
        if installed[asked] is None:
            raise metadata.PackageNotFoundError(asked)
        return installed[asked]

    monkeypatch.setattr(doctor.metadata, "version", version)
    remedies = found(doctor.check_versions(), "fail")
    assert remedies.keys() == {name}
    pip, install, wanted = shlex.split(remedies[name])
    requirement = Requirement(wanted)
    assert (pip, install, requirement.name) == ("pip", "install", name)
    # The remedy, taken: pip installs a version within these bounds.
    assert requirement.specifier.contains(good)
    installed[name] = good
    assert found(doctor.check_versions(), "fail") == {}


def test_distribution_that_is_not_installed_is_what_the_remedy_installs(monkeypatch) -> None:
    def requires(name: str):
        raise metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(doctor.metadata, "requires", requires)
        assert "make venv" in found(doctor.check_versions(), "fail")[doctor.DISTRIBUTION]
    assert (ROOT / "Makefile").read_text().count("\nvenv:") == 1
    assert found(doctor.check_versions(), "fail") == {}


def test_renderer_that_the_remedy_names_draws_and_its_packages_are_those_of_our_setup(monkeypatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no_such_backend")
    (remedy,) = found(doctor.check_rendering(), "fail").values()
    install, export = remedy.split("; ")
    setup = (ROOT / "scripts" / "bootstrap.sh").read_text(encoding="utf-8")
    assert re.search(r'packages="(.*)"', setup)[1] == install.removeprefix("apt-get install ")
    name, value = export.removeprefix("export ").split("=")
    monkeypatch.setenv(name, value)
    assert found(doctor.check_rendering(), "ok").keys() == {"rendering"}


def test_variable_that_the_note_on_rendering_sets_ends_the_note(monkeypatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    note = found(doctor.check_rendering(), "note")["rendering"]
    name, value = re.match(r"export (\w+)=(\w+)", note).groups()
    monkeypatch.setenv(name, value)
    assert found(doctor.check_rendering(), "note") == {}


def test_cache_elsewhere_ends_the_finding_on_the_cache(monkeypatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    temporary = doctor.tempfile.TemporaryFile

    def only_elsewhere(dir: Path):
        if dir == tmp_path:
            raise PermissionError(13, "Permission denied", str(dir))
        return temporary(dir=dir)

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", only_elsewhere)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "HF_HOME" in found(doctor.check_hub_cache(), "fail")["Hub cache"]
    home = tmp_path / "mine"
    home.mkdir()
    # HF_HOME is read once, when huggingface_hub is imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    assert found(doctor.check_hub_cache(), "fail") == {}


@pytest.mark.slow
def test_plugins_remedy_shows_where_it_fails(monkeypatch, tmp_path: Path) -> None:
    # An entry of None makes the import of that name fail.
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, doctor.DISTRIBUTION, None)
        remedy = found(doctor.check_plugin(), "fail")["LeRobot plugin"]
    program, option, code = shlex.split(remedy.partition(" shows where")[0])
    assert (program, option) == ("python", "-c")
    (tmp_path / "lerobot_policy_ofp.py").write_text("import no_such_module\n")
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert shown.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_module'"


def test_every_finding_that_is_to_be_mended_has_a_remedy() -> None:
    source = Path(doctor.__file__).read_text(encoding="utf-8")
    assert source.count('"fail"') > 5
    for check in doctor.diagnose():
        assert check.status == "ok" or check.remedy
