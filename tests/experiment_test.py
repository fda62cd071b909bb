"""Runs that start from a published model, and publish one again."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import small_experiment
from tests.published import edit_config, export, make
from tsd_jax.base.errors import UserError
from tsd_jax.models import pretrained, weights
from tsd_jax.run.experiment import initial_params

ROOT = pathlib.Path(__file__).resolve().parent.parent
BASE = small_experiment.get_config()


def run(module, *flags):
  return subprocess.run(
    [sys.executable, "-m", f"launch.{module}", *flags],
    cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
  )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
  return export(tmp_path / "start", BASE.model, make(BASE.model)[1])


def test_the_model_is_read_from_init(folder):
  config = dataclasses.replace(BASE, model=None, init=str(folder))
  assert config.model == dataclasses.replace(BASE.model, number_tokens=0)
  graphdef, params = initial_params(config)
  _, expected, start = pretrained.load(folder)
  assert graphdef == expected
  for name, array in weights.flatten(params).items():
    np.testing.assert_array_equal(array, weights.flatten(start)[name], name)


def test_another_shape_is_refused_by_name(folder):
  model = dataclasses.replace(BASE.model, d_mlp=32)
  config = dataclasses.replace(BASE, model=model, init=str(folder))
  with pytest.raises(UserError, match=r"model\.d_mlp=32 \(there 16\)"):
    initial_params(config)
  with pytest.raises(ValueError, match="model=none is read from a published"):
    dataclasses.replace(BASE, model=None)
  edit_config(folder, model_type="gpt2")
  with pytest.raises(UserError, match="model_type='gpt2'"):
    dataclasses.replace(BASE, model=None, init=str(folder))


def test_value_leaves_need_trained_value_outputs(tmp_path, folder):
  search = dataclasses.replace(BASE.search, leaf="value")
  config = dataclasses.replace(BASE, init=str(folder), search=search)
  with pytest.raises(UserError, match="never trained"):
    initial_params(config)
  trained = export(
    tmp_path / "b", BASE.model, make(BASE.model)[1], value_trained=True
  )
  initial_params(dataclasses.replace(config, init=str(trained)))


@pytest.mark.parametrize("leaf, given, weight", [
  ("none", None, 0.0), ("rollout", None, 0.0), ("value", None, 0.1),
  ("mix", None, 0.1), ("none", 0.3, 0.3), ("value", 0.0, 0.0),
])  # fmt: skip
def test_the_success_head_learns_where_a_search_reads_it(leaf, given, weight):
  config = dataclasses.replace(
    BASE,
    search=dataclasses.replace(BASE.search, leaf=leaf),
    loss=dataclasses.replace(BASE.loss, success_weight=given),
  )
  learner = config.learner_config()
  assert learner.loss.success_weight == weight
  assert learner.hyper["success_weight"] == weight
  assert learner.static.loss.success_weight == float(weight > 0)


@pytest.mark.parametrize("field, value", [
  ("temperature", 0.0), ("temperature", -1.0), ("temperature", math.nan),
  ("temperature", math.inf), ("every", -20),
])  # fmt: skip
def test_what_nothing_can_be_measured_at_is_refused(field, value):
  with pytest.raises(ValueError, match=rf"eval\.{field}={value} must"):
    dataclasses.replace(BASE.eval, **{field: value})


def test_a_run_goes_from_folder_to_folder(tmp_path, folder):
  workdir = tmp_path / "run"
  done = run(
    "train", "--config=tests/small_experiment.py", f"--workdir={workdir}",
    f"--config.init={folder}", "--config.model=none", "--config.iterations=2",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  saved = json.loads((workdir / "config.json").read_text())
  assert saved["model"]["d_model"] == BASE.model.d_model
  for flags in ((), ("--base",)):
    done = run("evaluate", f"--workdir={workdir}", "--mode=greedy", *flags)
    assert done.returncode == 0, done.stderr
  out = tmp_path / "out"
  done = run("export", f"--workdir={workdir}", f"--output={out}")
  assert done.returncode == 0, done.stderr
  start, end = (
    weights.flatten(pretrained.load(path)[2]) for path in (folder, out)
  )
  assert {name: a.shape for name, a in start.items()} == {
    name: a.shape for name, a in end.items()
  }
  assert (start["layers.gate_LDF"] != end["layers.gate_LDF"]).any()
