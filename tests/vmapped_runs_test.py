"""Several runs in one program: each is the run that it would be alone."""

import dataclasses
import json
import shutil

import pytest

from tests import small_experiment
from tsd_jax.base.config import override
from tsd_jax.base.errors import UserError
from tsd_jax.learning import memory
from tsd_jax.run import train


def easy(prompts, tokens_BGT, score):
  """Every third first token is right: the toy model has something to learn."""
  del prompts
  correct_X = tokens_BGT[..., 0] % 3 == 0
  return score._replace(
    reward_X=correct_X.astype(score.reward_X.dtype), correct_X=correct_X
  )


def config(**changes):
  base = dataclasses.replace(small_experiment.get_config(), reward=easy)
  return override(base, changes)


RUNS = [
  config(seed="0"),
  config(seed="1", **{"optimizer.learning_rate": "1e-2"}),
]


def rows(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def close(got, expected):
  """Whether two runs' rows are equal but for rounding and clocks."""
  assert len(got) == len(expected)
  for mine, other in zip(got, expected, strict=True):
    assert mine["ledger"] == other["ledger"]
    assert mine.get("eval") == other.get("eval")
    numbers = {k: v for k, v in other.items() if isinstance(v, float)}
    numbers.pop("seconds", None)
    assert {k: mine[k] for k in numbers} == pytest.approx(
      numbers, rel=2e-3, abs=2e-4
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """The runs alone, and together."""
  root = tmp_path_factory.mktemp("runs")
  for one in RUNS:
    train.train(one, root / "alone" / str(one.seed))
  together = [root / "together" / str(one.seed) for one in RUNS]
  train.train_vmapped(RUNS, together)
  return root


@pytest.mark.slow
def test_a_vmapped_run_is_the_run_alone(folders):
  found = [rows(folders / "together" / str(one.seed)) for one in RUNS]
  for one, mine in zip(RUNS, found, strict=True):
    close(mine, rows(folders / "alone" / str(one.seed)))
    assert (folders / "together" / str(one.seed) / "report.html").exists()
  assert all(one[-1]["reward"] > 0 for one in found)
  # Not the same run twice.
  assert found[0][-1]["loss"] != pytest.approx(found[1][-1]["loss"])


@pytest.mark.slow
@pytest.mark.parametrize(
  "lost", [((), (6,)), ((6,), (6,)), ((6,), (4, 6))],
  ids=["one is finished", "both at 4", "at 4 and at 0"],
)  # fmt: skip
def test_runs_that_were_stopped_all_end(folders, tmp_path, lost):
  root = tmp_path / "runs"
  shutil.copytree(folders / "together", root)
  places = [root / str(one.seed) for one in RUNS]
  for place, steps in zip(places, lost, strict=True):
    for step in steps:
      shutil.rmtree(place / "checkpoints" / str(step))
      (place / "samples.json").unlink(missing_ok=True)
  before = (places[0] / "metrics.jsonl").read_bytes()
  found = train.train_vmapped(RUNS, places)
  assert found == [rows(place)[-1]["eval"] for place in places]
  for place, steps in zip(places, lost, strict=True):
    close(rows(place), rows(folders / "alone" / place.name))
    assert (place / "samples.json").exists()
    if not steps:
      assert (place / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"search.num_simulations": "4"}, "in nothing else"),
    ({"optimizer.minibatches": "4"}, "in nothing else"),
    ({"loss.policy_weight": "0"}, "in nothing else"),
    ({"task.numbers": "4"}, "in nothing else"),
  ],
)
def test_runs_of_other_programs_are_refused(change, words, tmp_path):
  runs = [config(seed="0"), config(seed="1", **change)]
  with pytest.raises(ValueError, match=words):
    train.train_vmapped(runs, [tmp_path / "0", tmp_path / "1"])
  assert not list(tmp_path.iterdir())


def test_vmapped_runs_want_one_device(tmp_path):
  runs = [config(seed=seed, **{"mesh.data": "2"}) for seed in ("0", "1")]
  with pytest.raises(ValueError, match="a mesh of one device"):
    train.train_vmapped(runs, [tmp_path / "0", tmp_path / "1"])


def test_memory_is_counted_for_all_runs():
  one = dataclasses.replace(RUNS[0], iterations=2)
  arguments = (one.model, one.make_task(), one.learner_config(), one.mesh)

  def fits(there, runs):
    try:
      memory.check(*arguments, there, runs=runs)
    except UserError:
      return False
    return True

  least = next(k for k in range(10, 40) if fits(2**k, 1))
  assert not fits(2 ** (least - 1), 1)
  # Four runs are four times as much.
  assert fits(2 ** (least + 2), 4) and not fits(2 ** (least + 1), 4)
