"""The comparison of methods: which runs it takes, and what they add up to."""

import dataclasses
import json
import pathlib
import platform
import time
from typing import Any

import jax

from tsd_jax import compare, evaluate, report, train, workdir
from tsd_jax import config as config_lib
from tsd_jax.compare import Curve
from tsd_jax.methods import ALGORITHMS, Algorithm
from tsd_jax.models import transformer


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Methods on one task."""

  experiment: train.Experiment
  methods: tuple[Algorithm, ...] = ALGORITHMS
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  # Values of `swept` that every method is tried with, on validation.
  swept: str = "optimizer.learning_rate"
  values: tuple[str, ...] = ("2e-4", "3e-4", "5e-4")
  sweep_seed: int = 100  # None of the seeds that count.
  mode: str = "mean@16"
  split: str = "test"

  def __post_init__(self):
    """Refuses what cannot be compared."""
    if len(self.methods) < 2 or self.methods[0] != "tsd":
      raise ValueError(
        f"methods={','.join(self.methods)} must begin with tsd and name another"
      )
    if len(set(self.methods)) < len(self.methods):
      raise ValueError(f"methods={','.join(self.methods)} repeats one")
    if not self.values:
      raise ValueError(f"values is empty: name one value of {self.swept}")
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise ValueError(f"seeds={self.seeds} must be distinct, at least one")
    if self.sweep_seed in self.seeds:
      raise ValueError(
        f"sweep_seed={self.sweep_seed} must be none of seeds={self.seeds}"
      )
    if self.split == "validation":
      raise ValueError("split=validation chose the settings: use test")
    if evaluate.headline(self.experiment.eval.modes) != self.mode:
      raise ValueError(
        f"mode={self.mode} is not what experiment.eval.modes="
        f"{self.experiment.eval.modes} shows"
      )
    for method in self.methods:  # Every run can start, before any does.
      for value in self.values:
        self.run(method, value, self.seeds[0], self.split)

  def run(self, method: str, value: str, seed: int, split: str):
    """The experiment of one run."""
    changes = {
      "algorithm": method,
      "seed": str(seed),
      "eval.split": split,
      self.swept: value,
    }
    return config_lib.override(self.experiment, changes)


def judge(config: Comparison, folder: str | pathlib.Path) -> str:
  """Runs all that is missing and writes compare.json and compare.html.

  Args:
    config: what is compared.
    folder: holds sweep/METHOD/VALUE and runs/METHOD/SEED.

  Returns:
    A table of text.

  Raises:
    UserError: if the folder holds runs of another comparison.
  """
  folder, start = pathlib.Path(folder), time.monotonic()
  evaluate.parse_modes(config.mode)
  workdir.prepare(config, folder)
  best, sweep = {}, {}
  for method in config.methods:
    sweep[method] = {}
    for value in config.values if len(config.values) > 1 else ():
      run = config.run(method, value, config.sweep_seed, "validation")
      curve = _run(run, folder / "sweep" / method / value, config.mode)
      sweep[method][value] = float(curve.accuracy[-1])
    scores = sweep[method] or dict.fromkeys(config.values, 0.0)
    best[method] = max(scores, key=scores.__getitem__)
  runs: dict[str, list[Curve]] = {}
  for method in config.methods:
    for seed in config.seeds:
      run = config.run(method, best[method], seed, config.split)
      curve = _run(run, folder / "runs" / method / str(seed), config.mode)
      runs.setdefault(method, []).append(curve)
  curves = {name: compare.mean_curve(all_) for name, all_ in runs.items()}
  content = {
    "task": config.experiment.make_task().name,
    "split": config.split,
    "methods": {
      name: {
        "seeds": list(config.seeds),
        config.swept: best[name],
        "sweep": sweep[name],
        "iterations": curves[name].iterations.tolist(),
        "tokens": curves[name].tokens.tolist(),
        "seconds": curves[name].seconds.round(2).tolist(),
        config.mode: [c.accuracy.tolist() for c in all_],
        "area": [compare.area(c) for c in all_],
      }
      for name, all_ in runs.items()
    },
    "ratios": compare.contrast(runs),
    "flops_per_token": flops_per_token(config.experiment.model),
    "session_seconds": round(time.monotonic() - start, 1),
    "versions": {"jax": jax.__version__, "python": platform.python_version()},
  }
  text = json.dumps(content, indent=1, allow_nan=False) + "\n"
  workdir.write_whole(folder / "compare.json", text)
  shown = table(content, config.mode)
  page = report.comparison_page(shown, curves, config.mode)
  workdir.write_whole(folder / "compare.html", page)
  return shown


def _run(config: train.Experiment, folder: pathlib.Path, mode: str) -> Curve:
  """Trains where that is not done yet."""
  print(f"{folder}", flush=True)
  train.train(config, folder)
  return compare.read_curve(folder, mode)


def flops_per_token(model: transformer.ModelConfig) -> int:
  """2 x the weights that multiply one token, the output table included.

  Attention scores and value outputs are left out: below 5 % at short lengths.
  """
  c = model
  heads = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim
  layer = c.d_model * (heads + 3 * c.d_mlp)
  return 2 * (c.num_layers * layer + c.vocab_size * c.d_model)


def table(content: dict[str, Any], mode: str) -> str:
  """The comparison as lines of text."""
  found = content["methods"]
  seeds = len(next(iter(found.values()))["seeds"])
  lines = [
    f"{content['task']}, {content['split']}, {mode}, {seeds} seeds",
    f"{'method':>16}  {'last':>13}  {'area':>6}  {'tokens/iteration':>16}",
  ]
  for name, row in found.items():
    last = [accuracy[-1] for accuracy in row[mode]]
    mean = sum(last) / len(last)
    area = sum(row["area"]) / len(row["area"])
    tokens = row["tokens"][-1] / row["iterations"][-1]
    spread = f"{min(last):.3f}-{max(last):.3f}"
    lines.append(
      f"{name:>16}  {mean:.3f} {spread}  {area:>6.3f}  {tokens:>16,.0f}"
    )
  lines += [
    "",
    "tsd against        steps to its accuracy    at equal tokens    P",
  ]
  ratios = content["ratios"]
  for pair, steps in ratios["steps_to_target"].items():
    tokens = ratios["accuracy_at_equal_tokens"][pair]
    better = ratios["probability_of_improvement"][pair]

    def show(x, form):
      return "never" if x is None else format(x, form)

    lines.append(
      f"{pair.split('/')[1]:>16}  {show(steps['value'], '.2f'):>6} "
      f"[{show(steps['ci95'][0], '.2f')}, {show(steps['ci95'][1], '.2f')}]  "
      f"{show(tokens['value'], '+.3f'):>8} "
      f"[{show(tokens['ci95'][0], '+.3f')}, {show(tokens['ci95'][1], '+.3f')}]"
      f"  {better:.2f}"
    )
  return "\n".join(lines)
