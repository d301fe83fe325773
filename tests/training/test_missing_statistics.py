"""A dataset without statistics, of pictures or of anything, is trained on by its frames' own, or refused."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from lerobot.utils.constants import ACTION, OBS_STATE
from safetensors.torch import load_file

from ofp_vla.data.statistics import exact_statistics
from ofp_vla.errors import DataError
from ofp_vla.normalization.fit import robust
from tests.support.tiny import CAMERAS
from tests.training.conftest import arguments

pytestmark = pytest.mark.slow


@pytest.fixture
def dataset(images, tmp_path):
    return shutil.copytree(images, tmp_path / "images")


def normalised_by(run):
    folder = run / "checkpoints" / "last" / "pretrained_model"
    return load_file(next(folder.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")))


# Which statistics there are is the dataset's matter, whatever the host; each host normalises by them once.
@pytest.mark.parametrize(("host", "imagenet"), [("pi05", "true"), ("smolvla", "false")], indirect=["host"])
def test_dataset_without_statistics_is_normalised_by_those_of_its_frames(
    imagenet, host, dataset, base, tmp_path, train
):
    (dataset / "meta" / "stats.json").unlink()
    settings = {"policy__path": base, "steps": 1, "dataset__use_imagenet_stats": imagenet}
    policy = train(arguments(dataset, tmp_path / "run", **settings))
    found = normalised_by(tmp_path / "run")
    for key, exact in exact_statistics(dataset).items():
        wanted, _, _ = robust(exact, observed=key == OBS_STATE)
        for name in ("mean", "std", "q01", "q99"):
            np.testing.assert_allclose(found[f"{key}.{name}"], wanted[name], rtol=1e-5, atol=1e-6)
    assert len(policy.config.action_low) == len(found[f"{ACTION}.mean"])


@pytest.mark.parametrize("host", ["pi0"], indirect=True)
def test_dataset_without_statistics_of_pictures_is_trained_on(dataset, host, base, tmp_path, train):
    path = dataset / "meta" / "stats.json"
    stats = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in stats.items() if key not in CAMERAS}))
    train(arguments(dataset, tmp_path / "run", policy__path=base, steps=1))
    np.testing.assert_allclose(
        normalised_by(tmp_path / "run")[f"{ACTION}.mean"], stats[ACTION]["mean"], rtol=1e-5
    )


@pytest.mark.parametrize("host", ["pi05"], indirect=True)
def test_state_under_another_name_is_refused_for_its_statistics_are_not_renamed(
    dataset, host, base, tmp_path, train
):
    for path in (dataset / "meta" / "info.json", dataset / "meta" / "stats.json"):
        path.write_text(path.read_text().replace(OBS_STATE, "observation.joints"))
    for path in dataset.glob("data/chunk-*/file-*.parquet"):
        pd.read_parquet(path).rename(columns={OBS_STATE: "observation.joints"}).to_parquet(path)
    command = arguments(dataset, tmp_path / "run", policy__path=base, steps=1)
    renamed = {"observation.joints": OBS_STATE}
    with pytest.raises(DataError, match=rf"no '{OBS_STATE}'.*rename_map renames.*under the name {OBS_STATE}"):
        train([*command, f"--rename_map={json.dumps(renamed)}"])
