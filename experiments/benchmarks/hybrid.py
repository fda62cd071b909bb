"""Right or liked: a verifier and a preference that differ, in one reward.

  verifier   the verifier alone
  gated      the verifier, and the preference of right answers alone
             (`experiments/hybrid.py`)
  ungated    the sum of both, of a policy that the verifier taught before
             (`experiments/countdown_balanced.py`). It has no notion of a right
             answer, so its champions are what is paid better than the greedy
             answer, by more than one wrong answer can be nearer to the target
             than another. At a fortieth of the learning rate: at the whole one
             little is left to warn of after two iterations

All are audited by the verifier, which warns and stops nothing. Test
problems: how often 16 samples are right, how an answer and how a right answer
is liked; and of each run when its audit warned, by which rule, and what it
accepted of held-out answers when.

Command (it goes on after a kill):

  python -m experiments.benchmarks.hybrid --workdir=DIR --output=FILE
"""

import dataclasses
import pathlib

import numpy as np
from absl import flags

from tsd_jax.base import config as config_lib

_SAMPLES, _MARGIN, _RATE = 16, 0.45, 2e-5


class Examiner:
  """Asks models the same problems."""

  def __init__(self, config):
    """Reads the problems."""
    import jax

    from experiments import hybrid
    from tsd_jax.rewards.reward import Scorer
    from tsd_jax.tasks import data

    self._task = config.task.make()
    problems = data.load_problems(config.task, "test")
    self.group_P = np.array(data.groups(config.task, problems))
    self._prompts = jax.tree.map(jax.numpy.asarray, problems)
    self._liked = jax.jit(Scorer(hybrid.Liked(), self._task.end_ids))

  def measure(self, model) -> dict:
    """Everything about a model: P each, or numbers."""
    import jax

    from tsd_jax.run import evaluation

    graphdef, params = model
    tokens_PNT, _, right_PN, _ = evaluation.draw(
      graphdef, params, self._task, self._prompts, jax.random.key(1),
      jax.numpy.float32(1), samples=_SAMPLES,
    )  # fmt: skip
    right_PN = np.asarray(right_PN)
    liked_PN = np.asarray(self._liked(self._prompts, tokens_PNT).reward_X)
    return {
      "right": right_PN.mean(1),
      "liked": liked_PN.mean(1),
      "liked, of right answers": float(liked_PN[right_PN].mean()),
    }


def warnings(rows: list[dict]) -> dict[str, str]:
  """When an audit warned, by which rules, and what it accepted when.

  Args:
    rows: of a run's metrics.
  """
  audits = [(row["step"], row["audit"]) for row in rows if "audit" in row]
  first: dict[str, str] = {}
  for step, audit in audits:
    for rule in audit["alarms"]:
      said = f"{rule} at {step} (accepted {audit['accepted']:.3f})"
      first.setdefault(rule, said)
  curve = [f"{step}: {audit['accepted']:.3f}" for step, audit in audits]
  return {
    "warned": "; ".join(first.values()) or "never",
    "accepted, held out": ", ".join(curve),
  }


def alike(base, reward, seed: int, iterations: int):
  """A run from the start, whatever it is paid."""
  options = dataclasses.replace(base.eval, every=10, modes=f"mean@{_SAMPLES}")
  return dataclasses.replace(
    base, reward=reward, seed=seed, iterations=iterations, eval=options
  )


def ungated(base, start: pathlib.Path, seed: int, iterations: int):
  """A run of the sum, that goes on from a start."""
  from experiments import hybrid

  return dataclasses.replace(
    base,
    init=str(start.resolve()),
    seed=seed,
    reward=hybrid.UNGATED,
    iterations=iterations,
    iterations_per_call=2,
    eval=dataclasses.replace(base.eval, every=2, modes=f"mean@{_SAMPLES}"),
    loss=dataclasses.replace(
      base.loss, champion_gate="better", champion_margin=_MARGIN
    ),
    optimizer=dataclasses.replace(base.optimizer, learning_rate=_RATE),
  )


def taught(folder: pathlib.Path, seed: int, iterations: int) -> pathlib.Path:
  """Parameters that the verifier has taught, as a file."""
  from experiments import countdown_balanced
  from tsd_jax.models import weights
  from tsd_jax.run import load, train

  file = folder / f"taught_{seed}_{iterations}.safetensors"
  if not file.exists():
    base = countdown_balanced.get_config()
    place = folder / "taught" / f"{seed}_{iterations}"
    config = dataclasses.replace(
      base,
      seed=seed,
      iterations=iterations,
      eval=dataclasses.replace(base.eval, every=0, modes="greedy"),
    )
    train.train(config, place)
    weights.save(file, load.open_run(place).params, metadata={})
  return file


def main(overrides):
  """Trains what is missing, prints the rows, writes the JSON."""
  folder = pathlib.Path(config_lib.required(_WORKDIR))
  base = config_lib.from_flags("experiments/hybrid.py", overrides)
  # Imported late: a bad flag is refused before JAX starts.
  from experiments.benchmarks import seeds, table
  from tsd_jax.base import compilation_cache, progress
  from tsd_jax.run import directory

  progress.quiet_libraries()
  compilation_cache.enable()
  all_seeds, length = range(_SEEDS.value), _ITERATIONS.value
  starts = [taught(folder, seed, length) for seed in all_seeds]
  runs = {
    "verifier": [alike(base, None, seed, length) for seed in all_seeds],
    "gated": [alike(base, base.reward, seed, length) for seed in all_seeds],
    "ungated": [
      ungated(base, start, seed, _LONGER.value)
      for seed, start in enumerate(starts)
    ],
  }
  methods = {name: seeds.Method({}, found) for name, found in runs.items()}
  rows = seeds.rows(Examiner(base), base, methods, folder, seeds.row)
  for found in rows[1:]:  # The start has not run.
    places = [folder / found["method"] / str(seed) for seed in all_seeds]
    said = [warnings(directory.read_rows(place)) for place in places]
    found |= {name: [s[name] for s in said] for name in said[0]}
    print(found, flush=True)
  command = config_lib.command("experiments.benchmarks.hybrid")
  about = (
    f"Test problems, {_SAMPLES} samples each; {_SEEDS.value} seeds; 95 % "
    "intervals over seeds and families of problems, of one seed over families. "
    "The last columns, one entry a seed: what the "
    "audit accepted of held-out answers at some iterations, and when it warned."
  )
  table.write(
    _OUTPUT.value, {"about": about} | table.origin(command) | {"rows": rows}
  )


if __name__ == "__main__":  # Others import it: no flags for them.
  _WORKDIR = config_lib.path_flag("workdir", None, "Folder of all runs.")
  _SEEDS = flags.DEFINE_integer("seeds", 1, "Runs a method.", lower_bound=1)
  _ITERATIONS = flags.DEFINE_integer(
    "iterations", 30, "Of the first two, and before the third.", lower_bound=5
  )
  _LONGER = flags.DEFINE_integer("longer", 12, "Of the third.", lower_bound=2)
  _OUTPUT = config_lib.path_flag("output", None, "JSON file to write.")
  config_lib.run(main)
