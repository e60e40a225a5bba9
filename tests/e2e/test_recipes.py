"""The recipes on their real data: each learns, and takes its settings from the command line, the mesh among them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import headrace as hr
from headrace.train.recipe import RecipeTarget, load_recipe
from headrace.train.settings import recipe_settings
from waiting import DEADLINE_SEC

RECIPES = Path(__file__).parents[2] / "recipes"
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Packed digits and tables, training and test split apart."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("digits", "tables"):
        subprocess.run([sys.executable, RECIPES / "data.py", name, folder / name], check=True)
    split = {"train": 0.8, "test": 0.2}
    hr.pack(folder / "digits", folder / "digits-shards", split=split)
    for path in (folder / "tables").glob("*.csv"):
        hr.pack(path, folder / path.stem, format="parquet", split=split)
    return folder


def load(name):
    return load_recipe(RecipeTarget.parse(str(RECIPES / name)))


def fit(name, **settings):
    torch.set_num_threads(1)
    trainer = load(name)(**settings)
    result = trainer.fit()
    trainer.loader.close()
    return trainer, result


def test_the_perceptron_tells_classes_as_well_as_others_do(data):
    _, result = fit("tabular.py", data=str(data / "breast_cancer"), epochs=10)
    assert result.metrics["accuracy"] >= 0.93  # always the most frequent: 0.6


def test_the_perceptron_tells_numbers_and_r2_is_that_of_all_held_out_rows(data):
    place = data / "diabetes"
    trainer, result = fit("tabular.py", data=str(place), epochs=10)
    features, wanted = sys.modules[type(trainer._options.inputs).__module__].columns(hr.open(place / "test"))
    numbers = trainer._options.loss.__self__
    trainer.model.eval()
    with torch.no_grad():
        told = trainer.model(torch.from_numpy(features))[:, 0].numpy() * numbers.deviation + numbers.mean
    r2 = 1 - ((told - wanted) ** 2).mean() / wanted.var()
    assert result.metrics["r2"] == pytest.approx(r2, abs=1e-5)
    assert r2 > 0.2


def test_standardised_columns_have_mean_0_and_deviation_1_by_the_training_rows_alone(data):
    trainer, _ = fit("tabular.py", data=str(data / "wine"), epochs=1)
    columns = sys.modules[type(trainer._options.inputs).__module__].columns
    rows, _ = columns(hr.open(data / "wine/train"))
    standard = trainer.model[0](torch.from_numpy(rows))
    assert torch.allclose(standard.mean(0), torch.zeros(rows.shape[1]), atol=1e-4)
    assert torch.allclose(standard.std(0, correction=0), torch.ones(rows.shape[1]), atol=1e-4)


def test_the_vision_transformer_learns(data):
    settings = {"epochs": 8, "layers": 2, "width": 32, "precision": "bf16", "activation_checkpointing": "full"}
    _, result = fit("vit.py", data=str(data / "digits-shards"), **settings)
    assert result.metrics["accuracy"] >= 0.4  # by chance: 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "place"), [("tabular.py", "wine"), ("vit.py", "digits-shards")])
def test_mesh_and_settings_come_from_the_command_line(name, place, data, tmp_path):
    command = [sys.executable, "-m", "headrace.cli.main", "train", RECIPES / name, "--nproc", "2", "--mesh", "fsdp=2"]
    settings = ["--set", f"data={data / place}", "--set", "epochs=1", "--set", "layers=2", "--set", "width=16"]
    done = subprocess.run(
        [*command, *settings, "--run", tmp_path / "run", "--json"],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_SEC,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["epochs"] == 1


@pytest.mark.parametrize("name", ["digits.py", "bytes_gpt.py", "tabular.py", "vit.py"])
def test_every_setting_has_a_type_and_a_default(name):
    for setting in recipe_settings(load(name)).values():
        assert str(setting).count(" = ") == 1
