"""Measures a trained run, or what it started from, on held-out problems.

python -m launch.evaluate --workdir=runs/tsd --mode=greedy,mean@16,pass@8
python -m launch.evaluate --workdir=runs/tsd --base --mode=best@8,search@64

Of a start that was sampled (--base, mean@K) it says which method is to be
expected to teach it best.

Modes are defined at --mode below, and in docs/commands.md.
"""

import json
import pathlib

from absl import flags, logging

from tsd_jax.base import config as config_lib
from tsd_jax.base.temperature import ALLOWED, is_allowed

_WORKDIR = config_lib.path_flag("workdir", None, "Folder of the run.")
_MODE = flags.DEFINE_string(
  "mode",
  None,
  "What is measured, several with commas. greedy: one answer, the likeliest "
  "token each time. mean@K: K samples, in the mean. pass@K: the chance that "
  "one of K samples is right. best@K: the one of K samples that the reward "
  "likes best. vote@K: the most frequent of K samples. search@N: the best "
  "answer by the reward in a tree of N simulations. By default the run's "
  "eval.modes.",
)
_BASE = flags.DEFINE_bool("base", False, "Measure the run's first parameters.")
_SPLIT = flags.DEFINE_string("split", None, "train, validation or test.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "Of sampling.")
_SEED = config_lib.seed_flag(None, "Of sampling.")


def main(overrides):
  """Prints a table and adds to DIR/eval.json, or DIR/eval_base.json."""
  del overrides  # There is no --config: a run is measured as it was trained.
  folder = config_lib.required(_WORKDIR)
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax.base import compilation_cache, progress
  from tsd_jax.comparison import law
  from tsd_jax.parallel.sharding import Layout
  from tsd_jax.rewards import callback
  from tsd_jax.run import directory, evaluation, load, reward_params
  from tsd_jax.run.experiment import initial_params
  from tsd_jax.tasks import data

  progress.quiet_libraries()
  compilation_cache.enable()
  saved = load.read_config(folder)

  def write(file, measured):
    directory.write_whole(file, json.dumps(measured, indent=2) + "\n")

  def chosen(flag, default):
    return default if flag.value is None else flag.value

  modes = chosen(_MODE, saved.eval.modes)
  split = chosen(_SPLIT, saved.eval.split)
  temperature = chosen(_TEMPERATURE, saved.eval.temperature)
  seed = chosen(_SEED, saved.seed)
  evaluation.parse_modes(modes)
  if not is_allowed(temperature):
    raise config_lib.UserError(
      f"--temperature={temperature} must be {ALLOWED}; for argmax decoding use "
      "--mode=greedy"
    )
  problems, task = data.load_problems(saved.task, split), saved.make_task()
  digests = data.digests(saved.task, {split: problems})
  if directory.changed_splits(folder, digests):
    logging.warning(
      "the %s problems are not those that %s was begun with", split, folder
    )
  name = "eval_base.json" if _BASE.value else "eval.json"
  file = pathlib.Path(folder) / name
  # Read and written now: what cannot be is better told before the work.
  measured = directory.read_json(folder, name) if file.exists() else {}
  if not isinstance(measured, dict):
    raise config_lib.UserError(f"{file} is damaged: delete it")
  layout = Layout.where_it_fits(saved.mesh)
  if _BASE.value:
    graphdef, params = initial_params(saved)
    params, step = layout.place(params), 0
  else:
    run = load.open_run(folder, layout)
    graphdef, params, step = run.graphdef, run.params, run.step
  write(file, measured)
  with progress.phase("evaluating"):
    results = evaluation.evaluate(
      graphdef,
      params,
      task,
      problems,
      modes,
      seed=seed,
      temperature=temperature,
      search=saved.search,
      reward_params=reward_params.read(task.reward, pathlib.Path(folder)),
      layout=layout,
    )
  print(f"iteration {step}, {split}, temperature {temperature:g}")
  print(evaluation.table(results))
  sampled = evaluation.headline(modes)
  plain = temperature == 1 and task.reward.knows_correct
  if _BASE.value and plain and sampled.startswith("mean@"):
    print(law.expectation(results[sampled]["accuracy"]))
  for function, counts in callback.report().items():
    print(function, ", ".join(f"{n} {kind}" for kind, n in counts.items()))
  facts = dict(split=split, step=step, temperature=temperature, seed=seed)
  measured |= {mode: result | facts for mode, result in results.items()}
  write(file, measured)


if __name__ == "__main__":
  config_lib.run(main)
