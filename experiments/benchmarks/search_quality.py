"""What each search finds for the tokens it spends, on policies that stay fixed.

For every task, policy and search: the fraction of held-out prompts solved
against tokens a prompt. Every forward of a token counts; the prompt counts once
for all searches. Where a search has a setting, every point of its curve takes
the best one, in its favour. Policies: `weak` is the warm start, `mid` and
`strong` come from short runs that are trained into --workdir where they are
missing; --policy adds runs that exist. Searches:

  best_of_n, cached_sampling   samples at the best temperature; the second pays
                               for no prefix twice, and is the honest baseline
  without_replacement          samples, each answer once
  beam, stochastic_beam        the best width
  limited_discrepancy(_ratio)  by ranks of the moves, by their log-ratios
  levin                        Levin tree search
  ab_mcts                      AB-MCTS-A (package treequest): draws of one token
                               or four from a node, valued by a rollout
  puct, gumbel                 mctx's policies as shipped, rollout leaves
  puct_tuned, gumbel_tuned     the same with this project's Q transforms, and
                               the best of three c for puct
  best_first_plain             discrepancy best-first, the default search
  best_first                   the same, no state_key twice (transpositions)
  best_first_value             with V_search besides, where it was trained
  steps, steps_lazy            best_first_plain over drawn steps of four tokens,
                               all of a node drawn with it, or as they are tried
  best_first_oracle            best_first_plain with the exact value

Trees pay for the forwards that `tsd_jax.search` makes, those of end tokens
included; the fields `*_without_ends` leave these out, as no search needs them
and the other searches do without.

With --value_steps, V_search is taught first (`experiments.relabelled_value`),
which changes the start a little: all searches of a task then share the start so
changed, and `mid` and `strong` begin there. `mid_taught` and `strong_taught`
are what these became, and then V_search taught again in as many steps.
`value_tokens` are the forwards of all that, spent once for all prompts and
searches to come; `training_tokens` is the ledger of the policy's own run. No
part of either is in the other figures.

A measurement is kept in --workdir: a stopped command goes on where it was, and
--only, --tasks and --policies choose parts, --stored shows what there is.

Command: python -m experiments.benchmarks.search_quality --workdir=DIR \
  --output=experiments/results/search_quality.json
"""

import json
import pathlib
import shlex
import sys
import time
import zlib
from typing import Any, NamedTuple

from absl import flags

from tsd_jax.base import config as config_lib

_WORKDIR = config_lib.path_flag(
  "workdir", None, "Folder of trained policies and of measurements."
)
_TASKS = flags.DEFINE_list("tasks", None, "Tasks; all by default.")
_POLICIES = flags.DEFINE_list(
  "policies",
  ["weak", "mid", "strong"],
  "Policies of each task, of these and mid_taught, strong_taught; or none.",
)
_POLICY = flags.DEFINE_multi_string(
  "policy", [], "A run's folder, measured as one policy more; repeatable."
)
_ONLY = flags.DEFINE_list("only", None, "Searches; all by default.")
_PROMPTS = flags.DEFINE_integer("prompts", 128, "Held-out prompts.", 1)
_BUDGET = flags.DEFINE_integer("budget", 1024, "Most tokens a prompt.", 32)
_REPEATS = flags.DEFINE_integer("repeats", 2, "Of searches that draw.", 1)
_SPLIT = flags.DEFINE_string("split", "validation", "Held-out split.")
_ALGORITHM = flags.DEFINE_string("algorithm", "tsd", "Trains mid and strong.")
_STORED = flags.DEFINE_bool("stored", False, "Leave out what was not measured.")
_VALUE_STEPS = flags.DEFINE_integer(
  "value_steps", 0, "Steps of 256 examples that teach V_search; 0: none.", 0
)
_OUTPUT = config_lib.path_flag(
  "output", None, "JSON file to write; the plot goes beside it as SVG."
)

TASKS = {
  "countdown3": "experiments/countdown.py",
  "countdown4": "experiments/countdown4.py",
  "maze": "experiments/maze.py",
}
ITERATIONS = {
  "weak": 0, "mid": 15, "strong": 60, "mid_taught": 15, "strong_taught": 60,
}  # fmt: skip


def points(budget: int) -> list[int]:
  """Tokens of a curve: powers of two and halves between, up to the budget."""
  grid = [32 * 2**i * k // 2 for i in range(20) for k in (2, 3)]
  return [x for x in grid if x < budget] + [budget]


class Candidate(NamedTuple):
  """A policy to measure."""

  task: str
  name: str
  config: Any
  graphdef: Any
  params: Any
  training_tokens: int  # Ledger total of its run.
  value_tokens: int  # Forwards that taught V_search before.

  @property
  def value_trained(self) -> bool:
    """Whether V_search's last weights, zero at first, have moved."""
    from tsd_jax.models import weights

    return weights.value_trained(self.params)


def from_run(run, task: str, name: str, value_tokens: int = 0) -> Candidate:
  """A run's newest checkpoint."""
  return Candidate(
    task,
    name,
    run.config,
    run.graphdef,
    run.params,
    run.ledger.total,
    value_tokens,
  )


def with_value(config, graphdef, params, file: pathlib.Path):
  """A model with a V_search, taught where its file is missing.

  Returns:
    The parameters, and the forwards that teaching took.
  """
  from experiments.recipes import relabelled_value
  from tsd_jax.models import transformer, weights

  steps, batch = _VALUE_STEPS.value, 256
  if not file.exists():
    params = relabelled_value.teach(
      graphdef, params, config.task, steps=steps, batch=batch
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    relabelled_value.save(file, params, config, steps, batch)
  _, shapes = transformer.abstract(config.model)
  params, metadata = weights.load(file, shapes)
  taught, _, _ = metadata["steps"].partition(" ")
  if int(taught) != steps:
    raise config_lib.UserError(
      f"{file} was taught in {taught} steps, not --value_steps={steps}: use "
      "another --workdir"
    )
  return params, int(metadata["forwards"])


def candidates(configs, extra):
  """Yields the policies of every task, then those of other runs.

  Args:
    configs: by task.
    extra: runs by folder.
  """
  from tsd_jax.run import load, train
  from tsd_jax.run.experiment import initial_params

  for task, config in configs.items():
    place, value_tokens = pathlib.Path(_WORKDIR.value) / task, 0
    if _VALUE_STEPS.value and _POLICIES.value:
      file = place / "value.safetensors"
      _, value_tokens = with_value(config, *initial_params(config), file)
      config = config_lib.override(config, {"init": str(file)})
    for name in _POLICIES.value:
      if ITERATIONS[name] == 0:
        start = initial_params(config)
        yield Candidate(task, name, config, *start, 0, value_tokens)
        continue
      changes = {
        "algorithm": _ALGORITHM.value,
        "iterations": str(ITERATIONS[name]),
        "eval.every": "0",
      }
      folder = place / name.removesuffix("_taught")
      train.train(config_lib.override(config, changes), folder)
      one = from_run(load.open_run(folder), task, name, value_tokens)
      if folder.name != name:
        file = place / f"{name}.safetensors"
        params, more = with_value(config, one.graphdef, one.params, file)
        one = one._replace(params=params, value_tokens=value_tokens + more)
      yield one
  for place, run in extra.items():
    known = [
      t for t in TASKS if config_lib.load(TASKS[t]).task == run.config.task
    ]
    task = known[0] if known else run.config.make_task().name
    yield from_run(run, task, pathlib.Path(place).resolve().name)


def measured(measurer, folder: pathlib.Path, name: str, of: dict) -> dict:
  """A measurement, from its file if that is of the same thing."""
  from experiments.benchmarks import measure
  from tsd_jax.run.directory import write_whole

  of = of | dict(settings=measurer.settings(name))
  file = folder / f"{name}.json"
  if file.exists() and (saved := json.loads(file.read_text()))["of"] == of:
    return saved
  if _STORED.value:
    raise measure.Skip("not measured yet")
  start, results = time.monotonic(), measurer.measure(name)
  seconds = round((time.monotonic() - start) / len(results), 1)
  folder.mkdir(parents=True, exist_ok=True)
  for method, found in results.items():
    content = dict(of=of, seconds=seconds) | found
    write_whole(folder / f"{method}.json", json.dumps(content) + "\n")
  return json.loads(file.read_text())


def checksum(params) -> int:
  """Tells parameters apart."""
  import jax
  import numpy as np

  crc = 0
  for leaf in jax.tree.leaves(params):
    crc = zlib.crc32(np.asarray(leaf).tobytes(), crc)
  return crc


def quality(candidate: Candidate, of: dict, measurer, only, grid):
  """Measures one policy and prints its table.

  Args:
    candidate: the policy.
    of: what the measurements depend on beside the searches' settings.
    measurer: runs the searches.
    only: names of searches.
    grid: tokens of the curve.

  Returns:
    One row a search.
  """
  import numpy as np

  from experiments.benchmarks import measure, solve_rates

  place = f"{candidate.task}/{candidate.name}"
  folder = pathlib.Path(_WORKDIR.value) / "measured" / place
  found, skipped = {}, {}
  for name in only:
    try:
      found[name] = measured(measurer, folder, name, of)
    except measure.Skip as why:
      skipped[name] = why
  if not found:
    return []
  summary = solve_rates.summarise(
    {name: np.array(f["tokens"]) for name, f in found.items()}, grid
  )
  print(f"\n{place}: {of['prompts']} prompts, solved within tokens")
  print(solve_rates.table(summary, grid), flush=True)
  for name, why in skipped.items():
    print(f"{name} left out: {why}", flush=True)
  rows = []
  for name, row in summary.items():
    if without := found[name].get("tokens_without_ends"):
      free = solve_rates.summarise({name: np.array(without)}, grid)[name]
      at = {k: v for k, v in free.items() if k.startswith("tokens_at")}
      row |= {f"{key}_without_ends": value for key, value in at.items()}
    rows.append(
      dict(
        name=f"{place}/{name}",
        value=row["tokens_at_50"]["value"],
        unit="tokens a prompt for half of the prompts",
        task=candidate.task,
        policy=candidate.name,
        method=name,
        prompts=of["prompts"],
        training_tokens=candidate.training_tokens,
        value_tokens=candidate.value_tokens,
        settings=found[name]["settings"],
        seconds=found[name]["seconds"],
        **row,
      )
    )
  return rows


def main(overrides):
  """Measures what is missing, prints tables, writes the JSON and the plot."""
  del overrides
  config_lib.required(_WORKDIR)
  # Imported late: an unknown flag is refused before JAX starts.
  from experiments.benchmarks import measure, solvable, solve_rates
  from experiments.benchmarks.compiled_searches import Policy
  from experiments.benchmarks.table import origin
  from tsd_jax.base import progress
  from tsd_jax.run import load
  from tsd_jax.run.directory import write_whole
  from tsd_jax.tasks import data

  only, tasks = _ONLY.value or measure.NAMES, _TASKS.value or list(TASKS)
  for flag, chosen, known in (
    ("only", only, measure.NAMES),
    ("tasks", tasks, TASKS),
    ("policies", _POLICIES.value, ITERATIONS),
  ):
    if unknown := sorted(set(chosen) - set(known)):
      raise config_lib.UserError(
        f"--{flag}={','.join(unknown)} is unknown: use {', '.join(known)}"
      )
  if not _VALUE_STEPS.value and any("_taught" in p for p in _POLICIES.value):
    raise config_lib.UserError(
      f"--policies={','.join(_POLICIES.value)} is taught a value: set "
      "--value_steps=STEPS"
    )
  configs = {name: config_lib.load(TASKS[name]) for name in tasks}
  extra = {place: load.open_run(place) for place in _POLICY.value}
  progress.quiet_libraries()
  grid, rows = points(_BUDGET.value), []

  for candidate in candidates(configs, extra):
    config, task = candidate.config, candidate.config.make_task()
    prompts = data.load_problems(config.task, _SPLIT.value)[: _PROMPTS.value]
    measurer = measure.Measurer(
      Policy(candidate.graphdef, candidate.params, task, prompts),
      budget=_BUDGET.value,
      repeats=_REPEATS.value,
      value_trained=candidate.value_trained,
      oracle=solvable.oracle(task, config.task),
    )
    of = dict(
      params=checksum(candidate.params),
      prompts=len(prompts),
      budget=_BUDGET.value,
      repeats=_REPEATS.value,
      split=_SPLIT.value,
    )
    rows += quality(candidate, of, measurer, only, grid)
  if not _OUTPUT.value:
    return
  output = pathlib.Path(_OUTPUT.value)
  # What --stored shows was measured by the command without it.
  given = [x for x in sys.argv[1:] if x != "--stored"]
  arguments = shlex.join(given).replace(_WORKDIR.value, "DIR")
  command = f"python -m experiments.benchmarks.search_quality {arguments}"
  # Of all processes that measured; training and setting up are not in it.
  seconds = round(sum(row["seconds"] for row in rows), 1)
  head = json.dumps(origin(command) | dict(wall_seconds=seconds), indent=1)
  lines = ",\n  ".join(map(json.dumps, rows))
  text = f'{head[:-2]},\n "rows": [\n  {lines}\n ]\n}}\n'
  write_whole(output, text)
  write_whole(output.with_suffix(".svg"), solve_rates.plot(rows) + "\n")


if __name__ == "__main__":
  config_lib.run(main)
