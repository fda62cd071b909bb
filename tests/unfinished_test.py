"""Runs that ended before their report, and what an evaluation searches with."""

import dataclasses

import pytest

from tests import small_experiment
from tsd_jax.run import directory, evaluation, load, train
from tsd_jax.search.rules import PUCT
from tsd_jax.tasks import data

BASE = dataclasses.replace(
  small_experiment.get_config(),
  iterations=4,
  search=dataclasses.replace(
    small_experiment.get_config().search,
    rule=PUCT(),
    leaf="rollout",
    slot_reuse=False,
    num_simulations=4,
  ),
  eval=dataclasses.replace(
    small_experiment.get_config().eval, every=0, modes="greedy,search@6"
  ),
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  train.train(BASE, folder)
  return folder


@pytest.mark.parametrize("iterations", [4, 2])
def test_a_run_that_was_killed_before_its_report_gets_it(workdir, iterations):
  """With as many iterations, or with fewer, as a comparison may ask for."""
  rows = directory.read_rows(workdir)
  (workdir / directory.SAMPLES).unlink()
  (workdir / directory.REPORT).unlink()
  shorter = dataclasses.replace(BASE, iterations=iterations)
  assert train.train(shorter, workdir) == rows[-1]["eval"]
  assert (workdir / directory.SAMPLES).is_file()
  assert (workdir / directory.REPORT).is_file()
  assert directory.read_rows(workdir) == rows


def test_a_run_and_an_evaluation_search_alike(workdir):
  """With the run's own rule and leaves."""
  run = load.open_run(workdir)
  found = evaluation.evaluate(
    run.graphdef, run.params, BASE.make_task(),
    data.load_problems(BASE.task, "validation"), "search@6",
    seed=BASE.seed, search=BASE.search,
  )  # fmt: skip
  measured = directory.read_rows(workdir)[-1]["eval"]["search@6"]
  assert measured == pytest.approx(found["search@6"])
