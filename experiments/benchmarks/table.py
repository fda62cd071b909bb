"""The rows of a benchmark: printed as they come, written as JSON."""

import json
import pathlib
import platform
from typing import Any

import jax

from tsd_jax.base.output_files import write_whole


def origin(command: str) -> dict[str, Any]:
  """What made a file of results: the command, the versions, the device."""
  device = jax.devices()[0].device_kind
  return dict(
    command=command,
    versions=dict(jax=jax.__version__, python=platform.python_version()),
    device=f"{device}, {jax.device_count()} device(s)",
  )


def write(file: str | None, content: dict[str, Any]) -> None:
  """Writes results where a file was asked for."""
  if file:
    path = pathlib.Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1) + "\n")


class Table:
  """Rows of name, value, unit and ratios to other things."""

  def __init__(self):
    self._rows = []

  def note(self, name: str, value: float, unit: str, **ratios: float) -> None:
    """Adds and prints a row; a ratio is named by what it is a ratio to."""
    self._rows.append(dict(name=name, value=value, unit=unit, ratio_to=ratios))
    shown = ", ".join(f"{v:.2f} of {k}" for k, v in ratios.items())
    number = f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    print(f"{name:<34}{number:>12} {unit:<14}{shown}", flush=True)

  def write(self, file: str | None, command: str) -> None:
    """Writes the rows where a file was asked for, with what made them."""
    write(file, origin(command) | dict(rows=self._rows))
