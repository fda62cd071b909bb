"""Methods side by side by a measure of one's own, over seeds."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from tsd_jax.comparison import columns, intervals
from tsd_jax.run import load, train
from tsd_jax.run.experiment import Experiment, initial_params


class Examiner(Protocol):
  """What asks models the same problems."""

  group_P: np.ndarray  # The problems' families.

  def measure(self, model: tuple[Any, Any]) -> dict[str, Any]:
    """What there is to say of a model: its structure and parameters."""
    ...


class Method(NamedTuple):
  """A method's runs, and what its row says of it."""

  facts: dict[str, Any]
  runs: Sequence[Experiment]  # One a seed.


Row = Callable[[list[dict[str, Any]], np.ndarray], dict[str, Any]]


def rows(
  examiner: Examiner,
  base: Experiment,
  methods: Mapping[str, Method],
  folder: pathlib.Path,
  row: Row,
) -> list[dict[str, Any]]:
  """Trains what is missing and measures it; prints the rows as they come.

  Args:
    examiner: measures models.
    base: gives the start.
    methods: by name.
    folder: of the runs, FOLDER/METHOD/SEED.
    row: figures of what was measured of some runs, and of the families.

  Returns:
    The start's row, then one a method.
  """
  start = [examiner.measure(initial_params(base))]
  found_rows = [{"method": "start"} | row(start, examiner.group_P)]
  print(found_rows[-1], flush=True)
  for name, method in methods.items():
    found, tokens = [], []
    for seed, config in enumerate(method.runs):
      place = folder / name / str(seed)
      train.train(config, place)
      run = load.open_run(place)
      found.append(examiner.measure((run.graphdef, run.params)))
      tokens.append(run.ledger.total)
    found_rows.append(
      {"method": name, "tokens": round(float(np.mean(tokens)))}
      | method.facts
      | row(found, examiner.group_P)
    )
    print(found_rows[-1], flush=True)
  return found_rows


def row(found: list[dict], group_P: np.ndarray) -> dict:
  """A method's figures, with intervals over seeds and families.

  Of one run the interval is over families alone.

  Args:
    found: of each seed, what `Examiner.measure` says.
    group_P: the problems' families.
  """
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
