"""The doctor names what is missing, looks into another interpreter, and survives one that crashes."""

import shlex
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from robotwin_eval.cli import main as evaluation
from robotwin_eval.sim.robotwin import InstallationError, RoboTwinSuite
from robotwin_eval.sim.robotwin.assets import CLUTTER_FILES
from robotwin_eval.sim.robotwin.doctor import installation
from robotwin_eval.sim.robotwin.doctor import python as doctor_python
from robotwin_eval.sim.robotwin.doctor.installation import MISSING, NOTE, OK, findings_text, ready, run_doctor
from tests.robotwin_eval.sim.robotwin.test_model_files import PNG
from tests.robotwin_eval.sim.robotwin.toy_robotwin import GLB, install_object

# Interpreters and their packages are looked at in the same way for an installation of either layout.
ONE_LAYOUT = pytest.mark.parametrize("layout", ["new"], indirect=True)


@pytest.fixture(autouse=True)
def few_packages(monkeypatch):
    """Looks at a few packages only: importing torch takes seconds."""
    monkeypatch.setattr(doctor_python, "OURS", ("numpy", "yaml"))
    monkeypatch.setattr(doctor_python, "ROBOTWINS", ("curobo", "open3d"))


def levels(findings):
    """The worst level of a subject."""
    order = [OK, NOTE, MISSING]
    found = {}
    for finding in findings:
        found[finding.subject] = max(found.get(finding.subject, OK), finding.level, key=order.index)
    return found


def fake_python(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_missing_parts_of_an_installation_come_with_remedies(robotwin):
    (robotwin / "assets/embodiments/toy-arm/curobo_left.yml").unlink()
    findings = run_doctor(robotwin)
    found = levels(findings)
    assert found["RoboTwin"] == found["config demo_clean"] == found["yaml"] == OK
    assert found["assets"] == found["robot toy-arm"] == found["curobo"] == MISSING
    assert not ready(findings)
    text = findings_text(findings)
    assert "1 of 3 tasks have theirs (push_cube)" in text
    assert "assets/objects/001_bottle" in text
    assert "_download_assets.sh" in text
    assert "update_embodiment_config_path.py" in text
    assert all(
        finding.remedy or finding.level != MISSING for finding in findings if "config" not in finding.subject
    )


@ONE_LAYOUT
def test_numpy_two_is_named_because_mplib_crashes_with_it(robotwin):
    (finding,) = [finding for finding in run_doctor(robotwin, cpu_check=True) if finding.subject == "numpy"]
    assert finding.level == (MISSING if int(np.__version__.split(".")[0]) >= 2 else OK)


def test_cpu_check_does_without_cuda_and_downloads(robotwin):
    found = levels(run_doctor(robotwin, cpu_check=True))
    assert found["curobo"] == found["open3d"] == found["assets"] == NOTE
    assert found["robot toy-arm"] == OK
    assert levels(run_doctor(robotwin, cpu_check=True, tasks=["sort_bottles"]))["assets"] == MISSING
    assert levels(run_doctor(robotwin, cpu_check=True, tasks=["push_cube"]))["assets"] == OK
    assert levels(run_doctor(robotwin, tasks=["push_cub"]))["task push_cub"] == MISSING


def test_clutter_lists_that_every_import_reads_are_looked_for_although_no_task_lacks_objects(robotwin):
    found = levels(run_doctor(robotwin, tasks=["push_cube"]))
    assert (found["assets"], found["clutter lists"]) == (OK, MISSING)
    assert "clutter lists" not in levels(run_doctor(robotwin, cpu_check=True, tasks=["push_cube"]))
    for name in CLUTTER_FILES:
        (robotwin / name).parent.mkdir(parents=True, exist_ok=True)
        (robotwin / name).write_text("{}")
    assert "clutter lists" not in levels(run_doctor(robotwin, tasks=["push_cube"]))


def test_planner_files_of_another_folder_are_found(robotwin):
    file = robotwin / "assets/embodiments/toy-arm/curobo_left.yml"
    here = file.read_text()
    file.write_text(here.replace(str(robotwin), "/elsewhere"))
    assert levels(run_doctor(robotwin))["robot toy-arm"] == MISSING
    assert levels(run_doctor(robotwin, cpu_check=True))["robot toy-arm"] == OK
    file.write_text(here)
    assert levels(run_doctor(robotwin))["robot toy-arm"] == OK


def test_wrong_root_and_config_are_findings_and_the_rest_is_still_looked_at(robotwin, tmp_path):
    found = levels(run_doctor(tmp_path / "nothing"))
    assert found["RoboTwin"] == MISSING
    assert found["yaml"] == OK
    assert levels(run_doctor(robotwin, config="demo_dirty"))["config demo_dirty"] == MISSING


@ONE_LAYOUT
def test_interpreters_that_do_not_start_or_crash_are_findings(robotwin, tmp_path):
    nowhere = str(tmp_path / "python")
    assert levels(run_doctor(robotwin, python=nowhere))["python"] == MISSING
    # Starts, imports the first package and dies in the second, as mplib does with numpy 2.
    lines = (
        '{"event": "python", "version": "3.10.1"}',
        '{"event": "package", "name": "numpy", "version": "1.26.4"}',
    )
    dying = fake_python(tmp_path / "dying", "\n".join(f"echo '{line}'" for line in lines) + "\nkill -SEGV $$")
    findings = run_doctor(robotwin, python=dying)
    found = levels(findings)
    assert found["python"] == found["numpy"] == OK
    assert found["yaml"] == MISSING
    assert "ended the interpreter" in findings_text(findings)


@ONE_LAYOUT
def test_probe_reports_the_interpreter_that_it_is_told(robotwin):
    (finding,) = [
        finding for finding in run_doctor(robotwin, python=sys.executable) if finding.subject == "python"
    ]
    version = ".".join(map(str, sys.version_info[:3]))
    assert version in finding.message
    assert finding.level == (OK if version.startswith("3.10.") else NOTE)


def test_robot_without_its_meshes_fails_and_the_download_mends_it(robotwin):
    robot = robotwin / "assets/embodiments/toy-arm"
    (robot / "urdf/arm.urdf").write_text(
        "<robot name='a'><link name='l'><collision><geometry>"
        "<mesh filename='meshes/l.glb'/></geometry></collision></link></robot>"
    )
    for cpu_check in (False, True):
        findings = run_doctor(robotwin, cpu_check=cpu_check)
        assert levels(findings)["robot toy-arm"] == MISSING
        assert "urdf/meshes/l.glb (missing)" in findings_text(findings)
    (robot / "urdf/meshes").mkdir()
    (robot / "urdf/meshes/l.glb").write_bytes(GLB)
    assert levels(run_doctor(robotwin))["robot toy-arm"] == OK


def test_objects_without_a_model_and_damaged_ones_are_found(robotwin):
    tasks = ["sort_bottles"]
    install_object(robotwin, "002_cup")
    (robotwin / "assets/objects/001_bottle").mkdir()  # unpacked up to here
    assert (
        "not installed: assets/objects/001_bottle\n"
        in findings_text(run_doctor(robotwin, tasks=tasks)) + "\n"
    )
    model = robotwin / "assets/objects/001_bottle/visual/base3.glb"
    model.parent.mkdir()
    model.write_bytes(GLB[:6])
    (model.parent.parent / "model_data3.json").write_text('{"scale": [1,')
    findings = run_doctor(robotwin, tasks=tasks)
    assert levels(findings)["assets"] == MISSING
    for name in ("visual/base3.glb", "model_data3.json"):
        assert f"001_bottle/{name} (cut short or damaged)" in findings_text(findings)
    model.write_bytes(GLB)
    (model.parent.parent / "model_data3.json").write_text('{"scale": [1, 1, 1]}')
    assert levels(run_doctor(robotwin, tasks=tasks))["assets"] == OK


def test_textures_are_counted_as_robotwin_counts_them(robotwin):
    folder = robotwin / "assets/background_texture/unseen"
    folder.mkdir(parents=True)
    for name in CLUTTER_FILES:
        (robotwin / name).parent.mkdir(parents=True, exist_ok=True)
        (robotwin / name).write_text("{}")

    def said():
        return findings_text(run_doctor(robotwin, "demo_randomized", tasks=["push_cube"]))

    assert "not installed: assets/background_texture/unseen" in said()
    for number in (0, 2):
        (folder / f"{number}.png").write_bytes(PNG)
    assert "not installed: assets/background_texture/unseen/1.png" in said()
    (folder / "2.png").rename(folder / "1.png")
    assert "assets: complete for 1 tasks" in said()


def test_lost_templates_are_found(robotwin):
    (robotwin / "description/task_instruction/push_cube.json").unlink()
    findings = run_doctor(robotwin, tasks=["push_cube"])
    assert levels(findings)["instructions"] == MISSING
    assert "instructions" not in levels(run_doctor(robotwin, tasks=["sort_bottles"]))


@ONE_LAYOUT
def test_one_half_installed_package_is_named_once_and_blames_no_other(robotwin, tmp_path, monkeypatch):
    packages = {
        "tensors": "import warp.types",  # the missing one
        "plans": "import tensors",
        "drivers": "raise ValueError('libcublas.so.12 not found')",
        "meshes": "import drivers",
        "crashes": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
        "halves": "import halves._core",
        "whole": "",
    }
    for name, source in packages.items():
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text(source)
    (tmp_path / "site/leftover").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setattr(doctor_python, "ROBOTWINS", (*list(packages)[:-1], "leftover", "whole"))
    findings = {finding.subject: finding for finding in run_doctor(robotwin, cpu_check=True)}
    missing = {name: finding for name, finding in findings.items() if finding.level == MISSING}
    assert set(missing) - {"numpy"} == {"warp", "drivers", "crashes", "halves", "leftover"}
    assert "tensors, plans cannot be imported without it" in missing["warp"].message
    assert missing["warp"].remedy == f"{sys.executable} -m pip install warp-lang 'numpy<2'"
    assert "meshes cannot be imported without it" in missing["drivers"].message
    assert "ended the interpreter" in missing["crashes"].message
    for name in ("halves", "leftover"):
        assert missing[name].remedy == f"{sys.executable} -m pip install --force-reinstall --no-deps {name}"
    assert findings["whole"].level == OK
    (tmp_path / "site/warp").mkdir()  # the remedy
    for name in ("__init__", "types"):
        (tmp_path / f"site/warp/{name}.py").write_text("")
    found = levels(run_doctor(robotwin, cpu_check=True))
    assert found["tensors"] == found["plans"] == OK
    assert "warp" not in found


def test_remedies_install_into_the_interpreter_that_was_looked_at():
    absent = {name: {"error": "absent", "missing": name, "roots": []} for name in ("sapien", "warp")}
    said = [finding.remedy for finding in doctor_python._failed(absent, "/opt/my sim/python", True)]
    assert [words.split(" (")[0] for words in said] == [
        f"'/opt/my sim/python' -m pip install {name} 'numpy<2'" for name in ("sapien", "warp-lang")
    ]


@pytest.mark.parametrize("name", ["cv2", "h5py", "open3d", "numpy"])
def test_remedies_bring_no_numpy_that_mplib_crashes_with(name):
    # opencv-python-headless of 2026 takes numpy 2, and so does a reinstallation with all dependencies.
    for error in ({"missing": name}, {"missing": ""}):
        (found,) = doctor_python._failed({name: {"error": "gone", "roots": [], **error}}, "py", False)
        words = found.remedy.split()
        assert any(word.startswith("'numpy<2") or word == "'numpy==1.26.4'" for word in words) or (
            "--no-deps" in words
        )


@ONE_LAYOUT
@pytest.mark.parametrize("given", [None, sys.executable])
def test_interpreter_of_the_command_itself_is_only_looked_at_with_a_word(robotwin, monkeypatch, given):
    monkeypatch.setattr(doctor_python, "OURS", ("yaml",))
    monkeypatch.setattr(doctor_python, "ROBOTWINS", ())
    found = {finding.subject: finding for finding in run_doctor(robotwin, cpu_check=True, python=given)}
    assert ("--sim-python" in found) == (given is None)
    if given is None:
        assert sys.executable in found["--sim-python"].message
        assert found["--sim-python"].level == NOTE


def test_last_word_has_a_start_of_the_suite(robotwin, monkeypatch):
    monkeypatch.setattr(doctor_python, "OURS", ("yaml",))
    monkeypatch.setattr(doctor_python, "ROBOTWINS", ())
    for name in CLUTTER_FILES:
        (robotwin / name).parent.mkdir(parents=True, exist_ok=True)
        (robotwin / name).write_text("{}")
    findings = run_doctor(robotwin, tasks=["push_cube"])
    assert ready(findings)
    assert "start: a worker starts, 3 tasks" in findings_text(findings)
    (robotwin / "envs/utils/create_actor.py").write_text("import pydantic_that_nobody_listed")
    findings = run_doctor(robotwin, tasks=["push_cube"])
    assert not ready(findings)
    assert "No module named 'pydantic_that_nobody_listed'" in findings[-1].message
    assert "robotwin-eval doctor" not in findings_text(findings)


def test_command_in_the_refusal_looks_at_the_interpreter_that_refused(robotwin, monkeypatch):
    (robotwin / "envs/utils/create_actor.py").write_text("import pydantic_that_nobody_listed")
    with pytest.raises(InstallationError, match="cannot be imported in") as caught:
        RoboTwinSuite(robotwin)
    words = shlex.split(str(caught.value).partition("is told by: ")[2])
    asked = {}
    monkeypatch.setattr(installation, "run_doctor", lambda *given: asked.update(given=given) or [])
    done = CliRunner().invoke(evaluation.app, words[1:])
    assert (words[0], done.exit_code) == ("robotwin-eval", 0), done.output
    assert asked["given"] == (robotwin, "demo_clean", False, sys.executable, ())
