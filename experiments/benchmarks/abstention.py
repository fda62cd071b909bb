"""Who knows when not to answer: methods on the game that pays for "?".

For the start and for what PPO, GRPO, champions alone and TSD make of it, at
about equal tokens: the score (right 1, "?" a half, wrong 0), how often each of
them, greedy and in samples at the temperature that scores best on tuning
problems, on test problems. And how well a method ranks its answers: the area
under the curve of risk over coverage, of its commonest answers, where problems
are taken in the order of how many samples do not abstain (`answers`), or how
many of all samples agree on an answer (`agreement`).

Command (40 minutes on one core; it goes on after a kill):

  python -m experiments.benchmarks.abstention --workdir=DIR --output=FILE
"""

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np
from absl import flags

from tsd_jax.base import config as config_lib

_TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
_SAMPLES = 64


class _Entry(NamedTuple):
  """A method's settings; iterations make for equal tokens."""

  iterations: int
  learning_rate: float


METHODS = {
  "tsd": _Entry(60, 8e-4),
  "expert_iteration": _Entry(75, 8e-4),
  "ppo": _Entry(120, 3e-4),
  "grpo": _Entry(120, 3e-4),
}


class Answers(NamedTuple):
  """What a model says to P problems, N times."""

  reward_PN: np.ndarray
  correct_PN: np.ndarray
  abstains_PN: np.ndarray
  tokens_PNT: np.ndarray


def risk_over_coverage(confidence_P: np.ndarray, right_P: np.ndarray) -> float:
  """Area under the curve: mean error of the surest k problems, over all k.

  Problems of equal confidence come in one step, with their mean error.
  """
  order_P = np.argsort(-confidence_P, kind="stable")
  wrong_P = 1.0 - right_P[order_P]
  for value in np.unique(confidence_P):
    tied_P = confidence_P[order_P] == value
    wrong_P[tied_P] = wrong_P[tied_P].mean()
  return float(np.mean(np.cumsum(wrong_P) / np.arange(1, len(wrong_P) + 1)))


def ranked(answers: Answers) -> dict[str, float]:
  """The area for each kind of confidence, of every problem's commonest answer.

  Args:
    answers: samples.
  """
  same_PNN = np.all(
    answers.tokens_PNT[:, :, None] == answers.tokens_PNT[:, None], axis=-1
  )
  count_PN = same_PNN.sum(axis=2) * ~answers.abstains_PN
  best_P = count_PN.argmax(axis=1)
  rows_P = np.arange(len(best_P))
  right_P = answers.correct_PN[rows_P, best_P].astype(float)
  N = count_PN.shape[1]
  return {
    "answers": risk_over_coverage(1 - answers.abstains_PN.mean(1), right_P),
    "agreement": risk_over_coverage(count_PN.max(axis=1) / N, right_P),
  }


class Examiner:
  """Asks models the same problems."""

  def __init__(self, config):
    """Reads the problems."""
    from tsd_jax.tasks import data

    self._task = config.make_task()
    self._reward_params = self._task.reward.load()
    self._problems = {
      split: data.load_problems(config.task, split)
      for split in ("tuning", "test")
    }
    self.group_P = np.array(data.groups(config.task, self._problems["test"]))

  def ask(self, model, split: str, temperature: float, samples=_SAMPLES):
    """Answers of a model to a split's problems; one greedily for no samples."""
    import jax
    import jax.numpy as jnp

    from tsd_jax.run import evaluation

    graphdef, params = model
    tokens_PNT, reward_PN, correct_PN, _ = jax.device_get(
      evaluation.draw(
        graphdef, params, self._task,
        jax.tree.map(jnp.asarray, self._problems[split]), jax.random.key(1),
        jnp.float32(temperature), self._reward_params, samples=samples,
      )
    )  # fmt: skip
    offered = self._task.reward.abstention
    assert offered is not None
    said_PN = offered.said(tokens_PNT)
    return Answers(reward_PN, correct_PN, said_PN, tokens_PNT)

  def measure(self, model) -> dict[str, Answers | float]:
    """Greedy answers, and samples at the temperature that tuning chose."""
    scores = {
      t: float(self.ask(model, "tuning", t).reward_PN.mean())
      for t in _TEMPERATURES
    }
    best = max(scores, key=lambda t: scores[t])
    return {
      "temperature": best,
      "greedy": self.ask(model, "test", 1.0, samples=0),
      "sampled": self.ask(model, "test", best),
    }


def row(found: list[dict], group_P: np.ndarray) -> dict:
  """A method's figures, with intervals over seeds and families.

  Args:
    found: of each seed, what `Examiner.measure` says.
    group_P: the problems' families.
  """
  from tsd_jax.comparison import columns as columns_lib
  from tsd_jax.comparison import intervals

  columns = {}
  for way in ("greedy", "sampled"):
    parts = {
      "score": [f[way].reward_PN.mean(1) for f in found],
      "right": [f[way].correct_PN.mean(1) for f in found],
      "abstains": [f[way].abstains_PN.mean(1) for f in found],
    }
    for name, y_SP in parts.items():
      if len(found) < 2:  # Of the start.
        columns[f"{way}, {name}"] = columns_lib.plain(np.array(y_SP))
        continue
      interval = intervals.mean(np.array(y_SP), group_P)
      columns[f"{way}, {name}"] = columns_lib.written(interval)
    wrong = [
      float(np.mean(~f[way].correct_PN & ~f[way].abstains_PN)) for f in found
    ]
    columns[f"{way}, wrong"] = round(float(np.mean(wrong)), 4)
  ranks = [ranked(f["sampled"]) for f in found]
  for name in ranks[0]:
    mean = np.mean([rank[name] for rank in ranks])
    columns[f"risk over coverage by {name}"] = round(float(mean), 4)
  return columns | {"temperature": [f["temperature"] for f in found]}


def settings(base, method: str, seed: int):
  """A run of a method."""
  entry = METHODS[method]
  return dataclasses.replace(
    base,
    algorithm=method,
    seed=seed,
    iterations=entry.iterations,
    optimizer=dataclasses.replace(
      base.optimizer, learning_rate=entry.learning_rate
    ),
    eval=dataclasses.replace(base.eval, every=0),
  )


def main(overrides):
  """Trains what is missing, prints the rows, writes the JSON."""
  folder = pathlib.Path(config_lib.required(_WORKDIR))
  base = config_lib.from_flags(_CONFIG.value, overrides, "Experiment")
  # Imported late: a bad flag is refused before JAX starts.
  from experiments.benchmarks import seeds, table
  from tsd_jax.base import compilation_cache, progress

  progress.quiet_libraries()
  compilation_cache.enable()
  examiner = Examiner(base)
  methods = {
    method: seeds.Method(
      entry._asdict(),
      [settings(base, method, seed) for seed in range(_SEEDS.value)],
    )
    for method, entry in METHODS.items()
  }
  rows = seeds.rows(examiner, base, methods, folder, row)
  command = config_lib.command("experiments.benchmarks.abstention")
  about = (
    "Test problems; greedy, and 64 samples at the temperature that scores best "
    f"on tuning problems; {_SEEDS.value} seeds; 95 % intervals over seeds and "
    "families of problems."
  )
  table.write(
    _OUTPUT.value, {"about": about} | table.origin(command) | {"rows": rows}
  )


if __name__ == "__main__":  # Others import it: no flags for them.
  _CONFIG = flags.DEFINE_string(
    "config", "experiments/abstention.py", "Experiment file."
  )
  _WORKDIR = config_lib.path_flag("workdir", None, "Folder of all runs.")
  _SEEDS = flags.DEFINE_integer("seeds", 5, "Runs a method.", lower_bound=2)
  _OUTPUT = config_lib.path_flag("output", None, "JSON file to write.")
  config_lib.run(main)
