"""The Ray engine on a Ray of this machine: the same results as local workers, through crashes too."""

import logging
import os

import pytest
import ray

from tests.robotwin_eval.toy_runs import HERE, quiet, settings, table, toy
from tests.robotwin_eval.toy_server import ToyServer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("workers_find_the_toy")]


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}"}},
    )
    yield
    ray.shutdown()


def test_two_ray_workers_give_the_results_of_local_ones_although_one_is_killed_and_an_actor_lost(
    cluster, tmp_path
):
    with ToyServer() as server:
        local = quiet(settings(server), tmp_path / "local")
        killed, lost = (local.manifest.tasks["far"].accepted[number].seed for number in (1, 3))
        faults = {f"far:{killed}:reset": "segfault", f"far:{lost}:reset": "kill-parent"}
        simulator = toy(faults=faults, markers=str(tmp_path))
        distributed = quiet(settings(server, engine="ray", simulator=simulator), tmp_path / "ray")
    assert table(distributed.results) == table(local.results)
    assert distributed.manifest == local.manifest
    incidents = {incident.seed: incident for incident in distributed.incidents}
    assert {seed: each.kind for seed, each in incidents.items()} == {killed: "crash", lost: "crash"}
    assert [seed for seed, each in incidents.items() if "actor was lost" in each.message] == [lost]
