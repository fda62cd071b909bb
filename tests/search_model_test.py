"""A search model of its own: frozen, of another shape, the policy's teacher."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import countdown_teacher, smollm2_teacher
from experiments.benchmarks import teacher
from tests import small_experiment
from tests.published import make
from tsd_jax.learning import iteration, memory
from tsd_jax.models import (
  hf,
  presets,
  pretrained,
  text_tokenizer,
  transformer,
  weights,
)
from tsd_jax.models.flops import flops_per_token
from tsd_jax.run import costs, directory, load, train
from tsd_jax.run.checkpoint import Checkpointer
from tsd_jax.run.experiment import search_model

BASE = dataclasses.replace(
  small_experiment.get_config(), iterations=4, iterations_per_call=2,
  checkpoint_every=2,
  refresh_every=0,
)  # fmt: skip
SMALL = dataclasses.replace(BASE.model, d_mlp=8, num_layers=1)


@pytest.fixture
def taught(tmp_path):
  file = str(tmp_path / "small.safetensors")
  weights.save(file, transformer.create(SMALL, 5)[1], metadata={})
  return dataclasses.replace(BASE, search_init=file, search_model=SMALL)


def numbers(folder):
  rows = directory.read_rows(folder)
  return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


@pytest.mark.slow
def test_the_policy_itself_as_search_model_changes_nothing(tmp_path):
  file = str(tmp_path / "same.safetensors")
  weights.save(file, transformer.create(BASE.model, 5)[1], metadata={})
  start = dataclasses.replace(BASE, init=file)
  train.train(start, tmp_path / "snapshot")
  named = dataclasses.replace(start, search_init=file)
  assert named.search_model == BASE.model
  train.train(named, tmp_path / "named")
  assert numbers(tmp_path / "named") == numbers(tmp_path / "snapshot")


def test_a_smaller_one_teaches_and_stays_as_it_is(taught, tmp_path):
  folder = tmp_path / "run"
  train.train(dataclasses.replace(taught, iterations=2), folder)
  train.train(taught, folder)  # Resumes.
  train.train(taught, tmp_path / "at_once")
  assert numbers(folder) == numbers(tmp_path / "at_once")
  run = load.open_run(folder)
  assert run.step == 4
  shape = jax.tree.map(np.shape, run.params)
  assert shape == jax.tree.map(
    lambda a: a.shape, transformer.abstract(BASE.model)[1]
  )
  _, start = search_model(taught)
  state = iteration.init_state(
    taught.learner_config(), run.params, search_params=start
  )
  checkpointer = Checkpointer(folder, read_only=True)
  held, _ = checkpointer.restore(state._asdict())
  checkpointer.close()
  kept = held["search_params"]
  for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(start), strict=True):
    np.testing.assert_array_equal(a, b)


def test_trees_are_those_of_the_model_that_is_named(tmp_path):
  knowing = dataclasses.replace(
    BASE, iterations=2,
    search_init="experiments/starts/warm_start_3.safetensors",
    search_model=presets.TINY,
  )  # fmt: skip
  train.train(knowing, tmp_path / "taught")
  train.train(dataclasses.replace(BASE, iterations=2), tmp_path / "alone")
  # The policy knows nothing, and finds nothing by itself.
  for name, answers in (("taught", True), ("alone", False)):
    for row in numbers(tmp_path / name)[1:]:
      assert (row["search_answers"] > 0) == answers


def test_its_tokens_cost_what_it_costs(taught):
  learner = taught.learner_config()
  prompts = learner.prompts * taught.make_task().prompt_length
  ledger = {"search": 700, "total": 10_000}
  small, large = map(flops_per_token, (SMALL, BASE.model))
  searched = 700 + 3 * prompts
  expected = searched * small + (10_000 - searched) * large
  assert costs.flops(taught, ledger, 3) == expected
  assert costs.flops(BASE, ledger, 3) == 10_000 * large
  ppo = dataclasses.replace(taught, algorithm="ppo")
  assert costs.flops(ppo, ledger | {"search": 0}, 3) == 10_000 * large


def test_its_memory_is_counted(taught):
  def line(search):
    return memory.check(
      BASE.model, BASE.make_task(), BASE.learner_config(), BASE.mesh,
      search_model=search,
    )  # fmt: skip

  assert line(BASE.model) == line(None)
  # Of 64 layers, the keys and values of 64 nodes: 2 x 8 floats each.
  deep = dataclasses.replace(BASE.model, num_layers=64)
  assert "keys of the nodes 0.2 MiB" in line(deep)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(refresh_every=1), "set refresh_every=0"),
    (
      dict(search_model=dataclasses.replace(SMALL, vocab_size=999)),
      r"search_model\.vocab_size=999 is not model\.vocab_size",
    ),
    (dict(search_init=None), "name them with search_init"),
  ],
)
def test_refuses_what_cannot_teach(taught, changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(taught, **changes)


def test_refuses_a_shape_that_is_not_the_files(taught, tmp_path):
  wrong = dataclasses.replace(taught, search_model=None)
  with pytest.raises(Exception, match=r"small\.safetensors"):
    train.train(wrong, tmp_path / "run")


def test_the_benchmark_of_teachers_differs_in_the_teacher_alone():
  small = countdown_teacher.get_config()
  graphdef, _ = search_model(small)
  assert graphdef == transformer.abstract(small.search_model)[0]
  count = transformer.count_parameters
  assert count(small.search_model) < 0.6 * count(small.model)
  kinds = teacher.configs(
    "experiments/starts/warm_start_3_small.safetensors", "01"
  )
  for runs_of in kinds.values():
    assert [run.seed for run in runs_of] == [0, 1]
    alike = dataclasses.replace(
      runs_of[0], search_init=None, search_model=None, refresh_every=1
    )
    assert alike == kinds["default"][0]


def test_a_layer_left_out_is_one_that_adds_nothing(tmp_path):
  pytest.importorskip("tokenizers", reason="needs the extra: text")
  pytest.importorskip("jinja2", reason="needs the extra: text")
  from tests.text_tokenizer_test import write_folder

  tokenizer = text_tokenizer.load(write_folder(tmp_path / "tokenizer"))
  shape = dataclasses.replace(
    SMALL, num_layers=3, vocab_size=tokenizer.vocab_size, number_tokens=0
  )
  graphdef, params = make(shape)
  hf.save(tmp_path / "model", shape, params, tokenizer, max_length=64)
  folder = smollm2_teacher.pruned(tmp_path / "model", (1,))
  assert smollm2_teacher.pruned(tmp_path / "model", (1,)) == folder
  found, small, kept = pretrained.load(folder)
  assert found.num_layers == 2
  for name in ("output_LHED", "down_LFD"):
    p = params["layers"][name]
    p[...] = p[...].at[1].set(0.0)
  tokens_RT = jax.random.randint(jax.random.key(0), (2, 9), 0, found.vocab_size)
  np.testing.assert_allclose(
    nnx.merge(small, kept)(tokens_RT),
    nnx.merge(graphdef, params)(tokens_RT),
    atol=1e-5,
  )
