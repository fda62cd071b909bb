"""Every part of the recipe switched one at a time, on Countdown.

Each line of the table is the default run with one change, held against the
default: steps that it needs to reach the default's last accuracy, accuracy at
equal ledger tokens and at equal steps, over a few seeds, on validation
problems. Also in the list: what published attempts got wrong and can be said as
a setting, such as a clip that never acts (one minibatch, one epoch: the ratio
is 1 in every update).

Command (a minute to five a run; a killed table goes on):

  python -m experiments.benchmarks.ablations --workdir=DIR \
    [--only=no_forks,soft_targets]
"""

import json
import pathlib

from absl import flags

from tsd_jax.base import config as config_lib
from tsd_jax.run import curves as curves_lib

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown_balanced.py", "Experiment file."
)
WORKDIR = config_lib.path_flag("workdir", None, "Folder of all runs.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Seeds of every line.")
JOBS = flags.DEFINE_integer(
  "jobs", 1, "Runs at a time, each a process.", lower_bound=1
)
_ONLY = flags.DEFINE_list("only", None, "Lines to run; all by default.")

# What a line says beside its accuracy: `statistics.contrast` with the default.
KEYS = (
  "steps_to_target",
  "accuracy_at_equal_tokens",
  "difference_at_equal_steps",
)
# For rules of mctx's own, and for targets of whole trees.
_IN_STEP = {"search.slot_reuse": "false"}
# Where a part is taken out, another one gets its share of the update's tokens.
VARIANTS: dict[str, dict[str, str]] = {
  "no_champion": {
    "loss.champion_weight": "0",
    "rollout.prompts": "128",
    "rollout.samples": "5",
  },
  "champion_only": {
    "loss.policy_weight": "0",
    "loss.success_weight": "0",
    "loss.distilled_prompts": "832",
  },
  "own_champion": {
    "loss.champion_source": "samples",
    "loss.champion_weight": "0.5",
    "rollout.prompts": "128",
  },
  # As many prompts as the search has, five samples each instead of a tree.
  "wide_samples": {
    "loss.champion_source": "samples",
    "loss.distilled_prompts": "1024",
    "loss.policy_weight": "0",
    "loss.success_weight": "0",
    "rollout.prompts": "1024",
    "rollout.samples": "5",
    "rollout.forks": "0",
  },
  # A tree for every prompt that is sampled on, and no other.
  "narrow_search": {
    "loss.champion_weight": "0.5",
    "loss.distilled_prompts": "128",
    "rollout.prompts": "128",
    "search.width": "1",
    "search.trees": "128",
  },
  "width_8": {"search.width": "8"},
  "width_32": {"search.width": "32"},
  "any_prompts": {"rollout.choose": "first"},
  "champion_weight_2": {"loss.champion_weight": "2"},
  "champion_weight_32": {"loss.champion_weight": "32"},
  "better_champion": {"loss.champion_gate": "better"},
  "no_forks": {"rollout.samples": "8", "rollout.forks": "0"},
  "group_advantage": {
    "rollout.samples": "8",
    "rollout.forks": "0",
    "loss.advantage": "group",
  },
  "root_baseline": {"loss.local_weight": "0"},
  "no_success_head": {"loss.success_weight": "0"},
  "no_slot_reuse": _IN_STEP,
  "soft_targets": _IN_STEP
  | {"loss.soft_weight": "0.5", "search.leaf": "rollout"},
  # What the searched tree teaches by itself: no samples, no forks.
  "searched_tree": _IN_STEP
  | {
    "loss.policy_weight": "0",
    "loss.success_weight": "0",
    "loss.soft_weight": "8",
    "loss.distilled_prompts": "832",
    "search.leaf": "rollout",
  },
  "puct": _IN_STEP | {"search.rule": "puct", "search.leaf": "rollout"},
  "gumbel": _IN_STEP | {"search.rule": "gumbel", "search.leaf": "rollout"},
  "simulations_20": {"search.num_simulations": "20"},
  "simulations_128": {"search.num_simulations": "128"},
  "frozen_search": {"refresh_every": "0"},
  "refresh_10": {"refresh_every": "10"},
  "kl_to_reference": {"loss.kl_weight": "0.01"},
  "two_epochs": {"optimizer.epochs": "2"},
  "clip_never_acts": {"optimizer.minibatches": "1"},
}


def main(overrides):
  """Runs what is missing, prints the table, writes ablations.json."""
  folder = config_lib.required(WORKDIR)
  base = config_lib.from_flags(_CONFIG.value, overrides, "Experiment")
  names = _ONLY.value or possible(base)
  if unknown := sorted(set(names) - set(VARIANTS)):
    raise config_lib.UserError(
      f"--only={','.join(unknown)} is unknown: use {', '.join(VARIANTS)}"
    )
  if len(set(SEEDS.value)) < len(SEEDS.value):
    raise config_lib.UserError(f"--seeds={','.join(SEEDS.value)} repeats one")
  configs = {  # All of them are checked before the first one runs.
    name: [
      config_lib.override(base, VARIANTS.get(name, {}) | {"seed": seed})
      for seed in SEEDS.value
    ]
    for name in ("default", *names)
  }
  command = config_lib.command("experiments.benchmarks.ablations")
  measure(configs, VARIANTS, folder, command, jobs=JOBS.value)


def possible(base) -> list[str]:
  """The lines that an experiment can have; says which it can't, and why.

  The list is made for three numbers: another experiment may already be what a
  line changes it to, or its other fields may forbid the change.
  """
  names = []
  for name, change in VARIANTS.items():
    try:
      changed = config_lib.override(base, change)
      if changed.learner_config() == base.learner_config():
        print(f"{name} left out: the experiment has {change} already")
      else:
        names.append(name)
    except config_lib.ConfigError as error:
      print(f"{name} left out: {error}")
  return names


def measure(configs, changes, folder, command, name="ablations", jobs=1):
  """Runs what is missing and prints a line a kind of run, each when it is done.

  Args:
    configs: runs by name, one a seed; the first kind, `default`, is what the
      others are held against.
    changes: what is different in a kind, for the record.
    folder: of all runs, and of what is written.
    command: what made it, for the record.
    name: of the JSON file.
    jobs: runs at a time; lines are printed at the end if more than 1.

  Raises:
    UserError: for runs that failed, after the lines of all others.
  """
  # Imported late: a bad flag is refused before JAX starts.
  from experiments.benchmarks import table
  from tsd_jax.base import progress
  from tsd_jax.comparison.jobs import train_all
  from tsd_jax.run import directory, evaluation

  progress.quiet_libraries()
  base = configs["default"][0]
  folder, mode = pathlib.Path(folder), evaluation.headline(base.eval.modes)
  places = {
    kind: {folder / kind / str(config.seed): config for config in seeds}
    for kind, seeds in configs.items()
  }
  failure = None
  if jobs > 1:  # What is left to do below is to read them.
    every = [{p: c} for kind in places.values() for p, c in kind.items()]
    try:
      train_all(every, jobs)
    except config_lib.UserError as error:
      failure = error
  content = table.origin(command) | {
    "task": base.make_task().name,
    "split": base.eval.split,
    "mode": mode,
    "seeds": [config.seed for config in configs["default"]],
  }
  runs, rows = {}, {}
  print(
    f"{'change':>18}  {mode:>7}  {'steps to its last':>20}  "
    f"{'x at equal tokens':>20}  {'tokens/iteration':>16}",
    flush=True,
  )
  for kind, seeds in places.items():
    if failure and any(
      directory.results(c, p) is None for p, c in seeds.items()
    ):
      if kind == "default":
        raise failure
      continue
    runs[kind] = [train_one(c, place, mode) for place, c in seeds.items()]
    found = row(kind, runs[kind], runs["default"], mode)
    rows[kind] = {"change": changes.get(kind, {})} | found
    print(line(kind, found, mode), flush=True)
    directory.write_whole(
      folder / f"{name}.json",
      json.dumps(content | {"rows": rows}, indent=1) + "\n",
    )
  if failure:
    raise failure


def train_one(config, place, mode):
  """A run's curve, trained where it is missing.

  A token of a smaller search model counts by its operations.
  """
  from tsd_jax.models.flops import flops_per_token
  from tsd_jax.run import costs, directory, train

  train.train(config, place)
  curve = curves_lib.read_curve(place, mode)
  ledger = directory.read_rows(place)[-1]["ledger"]
  spent = costs.flops(config, ledger, config.iterations)
  share = spent / ledger["total"] / flops_per_token(config.model)
  return curve._replace(tokens=curve.tokens * share)


def row(kind, runs, default, mode):
  """What ablations.json says of a kind of run, beside its change."""
  from tsd_jax.comparison import statistics

  mean = statistics.mean_curve(runs)
  found = {
    mode: [float(curve.accuracy[-1]) for curve in runs],
    "tokens_per_iteration": float(mean.tokens[-1] / mean.iterations[-1]),
  }
  if kind == "default":
    return found
  ratios = statistics.contrast({kind: runs, "default": default}, ours=kind)
  return found | {key: ratios[key][f"{kind}/default"] for key in KEYS}


def line(kind, found, mode):
  """A kind of run as a line of the printed table."""
  from tsd_jax.comparison.statistics import interval

  shown = ("", "")
  if kind != "default":
    shown = (
      interval(found["steps_to_target"], ".2f", "never"),
      interval(found["accuracy_at_equal_tokens"], ".2f", "none"),
    )
  last = sum(found[mode]) / len(found[mode])
  return (
    f"{kind:>18}  {last:>7.3f}  {shown[0]:>20}  {shown[1]:>20}"
    f"  {found['tokens_per_iteration']:>16,.0f}"
  )


if __name__ == "__main__":
  config_lib.run(main)
