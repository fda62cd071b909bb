"""Another library's GRPO beside ours: same start, problems, reward, measure.

The library trains and calls `measure` where our run would evaluate; its weights
are read back and measured as our own. What a library's file adds is how it is
told our experiment.
"""

import importlib.metadata
import json
import pathlib
import time

import jax
import numpy as np

from tsd_jax.base import config as config_lib
from tsd_jax.base import progress
from tsd_jax.comparison import statistics
from tsd_jax.models import hf, pretrained
from tsd_jax.models.symbols import SymbolTokenizer
from tsd_jax.run import costs, directory, evaluation, train
from tsd_jax.run import curves as curves_lib
from tsd_jax.run.experiment import Experiment, initial_params
from tsd_jax.tasks import data
from tsd_jax.tasks.task import Task


def save_start(config: Experiment, folder: pathlib.Path) -> pathlib.Path:
  """Writes the run's starting weights as a Hugging Face folder."""
  start, task = folder / "start", config.make_task()
  if not start.exists():
    _, params = initial_params(config)
    length = task.prompt_length + task.response_length
    hf.save(start, config.model, params, SymbolTokenizer(), max_length=length)
  return start


def make_reward(task: Task):
  """Our reward, of prompts in text and of the token ids that were sampled."""
  score, tokenizer = jax.jit(task.score), SymbolTokenizer()

  def reward(prompts, completion_ids, **unused):
    del unused
    tokens_QT = np.full((len(prompts), task.response_length), task.pad_id)
    for row_T, ids in zip(tokens_QT, completion_ids, strict=True):
      row_T[: len(ids)] = ids
    prompt_QP = np.array([tokenizer.encode(text) for text in prompts])
    return np.asarray(score(prompt_QP, tokens_QT).reward_X).tolist()

  return reward


class Meter:
  """Measures a library's run, and keeps the points of its curve."""

  def __init__(self, name, config: Experiment, folder, save):
    """Starts the clock.

    Args:
      name: the library's, to print.
      config: our experiment; its seed is that of what it is measured on.
      folder: where points.json goes.
      save: writes the library's weights as a Hugging Face folder.
    """
    self._name, self._config = name, config
    self._folder, self._save = folder, save
    self._mode = evaluation.headline(config.eval.modes)
    self._task = config.make_task()
    self._held_out = data.load_problems(config.task, config.eval.split)
    self._points, self._seconds = [], 0.0
    self._began = time.monotonic()

  def step_ended(self, steps: int) -> None:
    """Measures where our run would; the clock stands meanwhile.

    Args:
      steps: optimiser steps made.
    """
    o = self._config.optimizer
    iteration, inside = divmod(steps, o.minibatches * o.epochs)
    last = iteration == self._config.iterations
    every = self._config.eval.every or self._config.iterations
    if inside or not (last or iteration % every == 0):
      return
    self._seconds += time.monotonic() - self._began if steps else 0.0
    self._save(self._folder / "now")
    _, graphdef, params = pretrained.load(
      self._folder / "now", config=self._config.model
    )
    result = evaluation.evaluate(
      graphdef, params, self._task, self._held_out, self._mode,
      seed=self._config.seed, temperature=self._config.eval.temperature,
    )[self._mode]  # fmt: skip
    self._points.append(
      (iteration, self._seconds, result["accuracy"], result["stderr"])
    )
    text = json.dumps(self._points)
    directory.write_whole(self._folder / "points.json", text)
    print(
      f"{self._name}, seed {self._config.seed}: {self._points[-1]}", flush=True
    )
    self._began = time.monotonic()


def update_tokens(config: Experiment) -> int:
  """Tokens run backward in an iteration where each row has its own prompt."""
  task, rollout = config.make_task(), config.learner_config().rollout
  row = task.prompt_length + task.response_length
  return rollout.prompts * rollout.group * row


def curve(config: Experiment, folder: pathlib.Path, run, reads: int):
  """The library's curve, trained anew where that did not come to its end.

  Args:
    config: our experiment.
    folder: of the run.
    run: run(config, folder) trains.
    reads: how often it reads a token of its rows, backward counted three times.
  """
  folder.mkdir(parents=True, exist_ok=True)
  fixed = config.optimizer.linear_decay
  digests = data.digests(config.task, data.load_splits(config.task))
  directory.prepare(config, folder, digests, fixed_length=fixed)
  file = folder / "points.json"
  if not file.exists() or (
    json.loads(file.read_text())[-1][0] < config.iterations
  ):
    run(config, folder)
  points = json.loads(file.read_text())
  columns = zip(*(p for p in points if p[0] <= config.iterations), strict=True)
  iterations, seconds, accuracy, stderr = map(np.asarray, columns)
  rollout = config.learner_config().rollout
  updated = iterations * update_tokens(config)
  scored = iterations * rollout.prompts * rollout.group
  tokens = updated * reads
  return curves_lib.Curve(
    iterations, tokens, accuracy, stderr, seconds, updated, scored,
    iterations * rollout.prompts,
  )  # fmt: skip


def compare_with(
  name: str,
  run,
  base: Experiment,
  seeds: list[int],
  folder: pathlib.Path,
  *,
  reads: int,
  output: str | None,
  about: str,
  packages: tuple[str, ...],
) -> None:
  """Trains what is missing of both, prints a table, writes the results.

  Args:
    name: the library's.
    run: run(config, folder) trains with it, and has a Meter measure.
    base: our experiment, by GRPO.
    seeds: of both.
    folder: of all runs.
    reads: see `curve`.
    output: JSON to write.
    about: what the results say of themselves.
    packages: whose versions they name.
  """
  progress.quiet_libraries()
  mode, theirs = evaluation.headline(base.eval.modes), f"{name}_grpo"
  runs = {"grpo": [], theirs: []}
  for seed in seeds:
    config = config_lib.override(base, {"seed": str(seed)})
    place = folder / name / str(seed)
    runs[theirs].append(curve(config, place, run, reads))
    place = folder / "ours" / str(seed)
    train.train(config, place)
    runs["grpo"].append(curves_lib.read_curve(place, mode))
  curves = {n: statistics.mean_curve(all_) for n, all_ in runs.items()}
  step = costs.update_step(base)
  backward = {
    "grpo": step["backward_tokens"],
    theirs: update_tokens(base) / base.optimizer.minibatches,
  }
  print(curves_lib.summary(curves, mode))
  if output is None:
    return
  content = {
    "about": about,
    "command": config_lib.command(f"experiments.baselines.{theirs}"),
    "task": base.make_task().name,
    "split": base.eval.split,
    "mode": mode,
    "methods": {
      name: {
        "seeds": seeds,
        "iterations": curves[name].iterations.tolist(),
        "tokens": curves[name].tokens.tolist(),
        "seconds": curves[name].seconds.round(2).tolist(),
        mode: [c.accuracy.tolist() for c in all_],
        "area": [statistics.area(c) for c in all_],
        "update_step": step
        | {
          "backward_tokens": backward[name],
          "ledger_tokens": float(
            curves[name].tokens[-1]
            / (curves[name].iterations[-1] * step["steps_an_iteration"])
          ),
        },
      }
      for name, all_ in runs.items()
    },
    "ratios": statistics.contrast(runs, ours="grpo"),
    "versions": {p: importlib.metadata.version(p) for p in packages},
  }
  directory.write_whole(
    pathlib.Path(output), json.dumps(content, indent=1) + "\n"
  )
