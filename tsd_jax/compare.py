"""Two runs side by side: at equal iterations and at equal ledger tokens."""

import json
import pathlib
from typing import NamedTuple

import numpy as np

from tsd_jax.config import UserError


class Curve(NamedTuple):
  """Held-out accuracy of one run at its evaluations, in order."""

  iterations: np.ndarray
  tokens: np.ndarray  # Ledger total.
  accuracy: np.ndarray
  stderr: np.ndarray  # Over prompts.


def read_curve(workdir: str | pathlib.Path, mode: str) -> Curve:
  """Reads a run's evaluations.

  Args:
    workdir: the run's folder.
    mode: such as mean@16.

  Raises:
    UserError: if the run never evaluated this mode.
  """
  file = pathlib.Path(workdir) / "metrics.jsonl"
  try:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
  except FileNotFoundError:
    raise UserError(f"no run in {workdir}: {file} is missing") from None
  points = [
    (
      row["step"],
      row["ledger"]["total"],
      row["eval"][mode]["accuracy"],
      row["eval"][mode]["stderr"],
    )
    for row in rows
    if mode in row.get("eval", {})
  ]
  if not points:
    raise UserError(
      f"{file} has no evaluation of {mode}: add it to --config.eval.modes"
    )
  return Curve(*map(np.asarray, zip(*points, strict=True)))


def at_tokens(curve: Curve, tokens: float) -> float:
  """Accuracy at a ledger total, linear between two evaluations."""
  return float(np.interp(tokens, curve.tokens, curve.accuracy))


def summary(curves: dict[str, Curve], mode: str) -> str:
  """A table of runs at equal iterations and at equal ledger tokens.

  Args:
    curves: by method.
    mode: the mode that they were read with, for the heading.

  Returns:
    Lines of text.
  """
  steps = min(c.iterations[-1] for c in curves.values())
  tokens = min(c.tokens[-1] for c in curves.values())
  lines = [
    f"held-out {mode}",
    f"{'method':>10}  {'start':>6}  {f'{steps} iterations':>20}  "
    f"{f'{tokens / 1e6:.2f} M tokens':>16}  {'tokens/iteration':>16}",
  ]
  for name, c in curves.items():
    at = int(np.searchsorted(c.iterations, steps, side="right")) - 1
    lines.append(
      f"{name:>10}  {c.accuracy[0]:>6.3f}  "
      f"{f'{c.accuracy[at]:.3f} ± {c.stderr[at]:.3f}':>20}  "
      f"{at_tokens(c, tokens):>16.3f}  "
      f"{c.tokens[-1] // max(c.iterations[-1], 1):>16,}"
    )
  return "\n".join(lines)
