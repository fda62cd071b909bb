"""Held-out accuracy over a run, against iterations, tokens and seconds."""

import pathlib
from typing import NamedTuple

import numpy as np

from tsd_jax.base.errors import UserError
from tsd_jax.run.directory import read_rows


class Curve(NamedTuple):
  """Held-out accuracy of one run at its evaluations, in order."""

  iterations: np.ndarray
  tokens: np.ndarray  # Ledger total.
  accuracy: np.ndarray
  stderr: np.ndarray  # Over prompts; over seeds in a mean of runs.
  seconds: np.ndarray  # Of training, without evaluation.
  updated: np.ndarray  # Tokens that update steps have read.
  scored: np.ndarray  # Responses that the reward has scored.
  prompts: np.ndarray  # That were read, one as often as it was.


def read_curve(
  workdir: str | pathlib.Path, mode: str, prompts: int = 0
) -> Curve:
  """Reads a run's evaluations.

  Args:
    workdir: the run's folder.
    mode: such as mean@16.
    prompts: that an iteration reads.

  Raises:
    UserError: if there is no run, or it never evaluated this mode.
  """
  points = [
    (
      row["step"],
      row["ledger"]["total"],
      row["eval"][mode]["accuracy"],
      row["eval"][mode]["stderr"],
      row["seconds"],
      row["ledger"].get("update", 0),
      row["ledger"].get("scored", 0),
      row["step"] * prompts,
    )
    for row in read_rows(workdir)
    if mode in row.get("eval", {})
  ]
  if not points:
    raise UserError(
      f"the run in {workdir} has no evaluation of {mode}: add it to "
      "--config.eval.modes"
    )
  return Curve(*map(np.asarray, zip(*points, strict=True)))


def at(curve: Curve, axis: str, x: float) -> float:
  """Accuracy where an axis of the curve is x, linear between evaluations."""
  return float(np.interp(x, getattr(curve, axis), curve.accuracy))


def summary(curves: dict[str, Curve], mode: str) -> str:
  """A table of runs at equal iterations and at equal ledger tokens.

  Args:
    curves: by method.
    mode: the mode that they were read with, for the heading.

  Returns:
    Lines of text.
  """
  steps = int(min(c.iterations[-1] for c in curves.values()))
  tokens = min(c.tokens[-1] for c in curves.values())
  lines = [
    f"held-out {mode}",
    f"{'method':>10}  {'start':>6}  {f'{steps} iterations':>20}  "
    f"{f'{tokens / 1e6:.2f} M tokens':>16}  {'tokens/iteration':>16}",
  ]
  for name, c in curves.items():
    last = int(np.searchsorted(c.iterations, steps, side="right")) - 1
    lines.append(
      f"{name:>10}  {c.accuracy[0]:>6.3f}  "
      f"{f'{c.accuracy[last]:.3f} ± {c.stderr[last]:.3f}':>20}  "
      f"{at(c, 'tokens', tokens):>16.3f}  "
      f"{c.tokens[-1] / max(c.iterations[-1], 1):>16,.0f}"
    )
  return "\n".join(lines)
