"""Right or liked: a verifier and a preference that differ, in one reward.

A policy that a verifier has taught (`experiments/countdown.py`, of the seed of
each run) goes on with

  verifier   the verifier alone
  gated      the verifier, and the preference of right answers alone
  ungated    the sum of both

of `experiments/hybrid.py`, with equal settings and prompts, but that the sum
has no notion of a right answer: its champions are what is paid better than the
greedy answer, by more than one wrong answer can be nearer than another. All are
audited by the verifier. Test problems: how often 16 samples are right, how an
answer and how a right answer is liked; and of each run when its audit warned,
by which rule, and what it accepted of held-out answers then and later.

Command (it goes on after a kill):

  python -m experiments.benchmarks.hybrid --workdir=DIR --output=FILE
"""

import dataclasses
import pathlib

import numpy as np
from absl import flags

from tsd_jax.base import config as config_lib

_SAMPLES, _MARGIN = 16, 0.45
METHODS = ("verifier", "gated", "ungated")


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


def settings(base, start: str, method: str, seed: int, iterations: int):
  """A run that goes on from a start."""
  from experiments import hybrid

  reward = {
    "verifier": None, "gated": hybrid.GATED, "ungated": hybrid.UNGATED
  }[method]  # fmt: skip
  loss = base.loss
  if method == "ungated":
    loss = dataclasses.replace(
      loss, champion_gate="better", champion_margin=_MARGIN
    )
  return dataclasses.replace(
    base,
    init=start,
    loss=loss,
    seed=seed,
    reward=reward,
    iterations=iterations,
    eval=dataclasses.replace(base.eval, every=5, modes=f"mean@{_SAMPLES}"),
  )


def taught(folder: pathlib.Path, seed: int, iterations: int) -> str:
  """The parameters that all runs of a seed go on from; trains them once."""
  from experiments import countdown
  from tsd_jax.models import weights
  from tsd_jax.run import load, train

  file = folder / f"taught_{seed}.safetensors"
  if not file.exists():
    base = countdown.get_config()
    options = dataclasses.replace(base.eval, every=0, modes="greedy")
    config = dataclasses.replace(
      base, seed=seed, iterations=iterations, eval=options
    )
    place = folder / "taught" / str(seed)
    train.train(config, place)
    weights.save(file, load.open_run(place).params, metadata={})
  return str(file.resolve())


def row(found: list[dict], group_P: np.ndarray) -> dict:
  """A method's figures, with intervals over seeds and families of problems."""
  from tsd_jax.comparison import columns, intervals

  figures = {}
  if len(found) < 2:  # The same run twice: what is left are the problems.
    found = found * 2
  for name, value in found[0].items():
    y_SP = np.array([f[name] for f in found])
    if np.ndim(value) == 0:
      figures[name] = round(float(y_SP.mean()), 4)
    else:
      figures[name] = columns.written(intervals.mean(y_SP, group_P))
  return figures


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
  all_seeds = range(_SEEDS.value)
  starts = [taught(folder, seed, _TAUGHT.value) for seed in all_seeds]
  methods = {
    method: seeds.Method(
      {},
      [
        settings(base, start, method, seed, _ITERATIONS.value)
        for seed, start in enumerate(starts)
      ],
    )
    for method in METHODS
  }
  base = methods["verifier"].runs[0]
  rows = seeds.rows(Examiner(base), base, methods, folder, row)
  for found in rows[1:]:
    runs = [folder / found["method"] / str(seed) for seed in all_seeds]
    said = [warnings(directory.read_rows(run)) for run in runs]
    found |= {name: [s[name] for s in said] for name in said[0]}
    print(found, flush=True)
  command = (
    "python -m experiments.benchmarks.hybrid --workdir=DIR "
    f"--taught={_TAUGHT.value} --iterations={_ITERATIONS.value} "
    f"--seeds={_SEEDS.value}"
  )
  about = (
    f"Test problems, {_SAMPLES} samples each; {_SEEDS.value} seeds; 95 % "
    "intervals over seeds and families of problems, of one seed over families. "
    "`start` is the first seed's. The last columns, one entry a seed: what the "
    "audit accepted of held-out answers at some iterations, and when it warned."
  )
  table.write(
    _OUTPUT.value, {"about": about} | table.origin(command) | {"rows": rows}
  )


if __name__ == "__main__":  # Others import it: no flags for them.
  _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.")
  _SEEDS = flags.DEFINE_integer("seeds", 1, "Runs a method.", lower_bound=1)
  _TAUGHT = flags.DEFINE_integer(
    "taught", 30, "Iterations with the verifier before.", lower_bound=5
  )
  _ITERATIONS = flags.DEFINE_integer(
    "iterations", 20, "Of each method.", lower_bound=5
  )
  _OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
  config_lib.run(main)
