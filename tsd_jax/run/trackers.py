"""Where a run's rows are logged beside its folder: four services, one form.

A service is a package that is imported when it is asked for. Each gets the rows
of metrics.jsonl with flat names (`ledger/total`, `eval/mean@16/accuracy`), the
held-out samples and searched trees as tables, and the page.
"""

import contextlib
import dataclasses
import html
import importlib.util
import json
import os
import pathlib
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from tsd_jax.base import outside_files

PROJECT = "tsd_jax"  # In services that have projects, unless they are told.


class Row(NamedTuple):
  """A row of metrics.jsonl as services take it."""

  step: int
  values: Mapping[str, float]


class Table(NamedTuple):
  """A table of texts and numbers."""

  name: str
  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]


class Tracker(Protocol):
  """A run that a service logs; the calls may raise whatever they like."""

  @property
  def id(self) -> str:
    """What `Opening.id` has to be, for the same run to go on."""
    ...

  def write(self, rows: Sequence[Row]) -> None:
    """Logs rows, in their order."""
    ...

  def table(self, step: int, table: Table) -> None:
    """Logs a table."""
    ...

  def page(self, step: int, name: str, text: str) -> None:
    """Logs a page of HTML, where the service shows pages."""
    ...

  def close(self) -> None:
    """Waits until all is written."""
    ...


@dataclasses.dataclass(frozen=True)
class Opening:
  """What a service is opened with."""

  folder: pathlib.Path  # The run's.
  config: Mapping[str, Any]
  id: str | None = None  # Of the run that goes on; None: a new one.

  @property
  def name(self) -> str:
    """What the run is called: its folder, and the one above."""
    return "-".join(self.folder.absolute().parts[-2:])


def flat(row: Mapping[str, Any]) -> Row:
  """A row of metrics.jsonl: its numbers, nested names joined by slashes."""
  values: dict[str, float] = {}

  def add(prefix: str, part: Mapping[str, Any]) -> None:
    for name, value in part.items():
      if isinstance(value, Mapping):
        add(f"{prefix}{name}/", value)
      elif outside_files.is_number(value) and prefix + name != "step":
        values[prefix + name] = float(value)

  add("", row)
  return Row(row["step"], values)


def tables(shown: Sequence[Mapping[str, Any]]) -> list[Table]:
  """The records of samples.json as tables: responses, and trees."""
  answers = [
    [sample["prompt"], when, a["text"], a["reward"], _word(a["correct"])]
    for sample in shown
    for when in ("before", "after")
    for a in sample[when]
  ]
  columns = ["prompt", "training", "response", "reward", "correct"]
  trees = [[sample["prompt"], sample["tree"]] for sample in shown]
  return [
    Table("samples", columns, answers),
    Table("trees", ["prompt", "tree"], trees),
  ]


def _word(correct: bool | None) -> str:
  return {True: "yes", False: "no", None: "unknown"}[correct]


class TensorBoard:
  """Event files in the run's folder, by tensorboardX."""

  id = "tensorboard"  # Its folder's name.

  def __init__(self, opening: Opening):
    """Goes on in the folder, with a file of its own."""
    import tensorboardX

    # Files of one second would have one name, and readers go by their names.
    self._writer = tensorboardX.SummaryWriter(
      str(opening.folder / self.id), filename_suffix=f".{time.time_ns()}"
    )
    if opening.id is None:
      text = json.dumps(opening.config, indent=2)
      self._writer.add_text("config", _code(text), 0)

  def write(self, rows: Sequence[Row]) -> None:
    """Logs rows, in their order; for signs that it refuses stands `_`."""
    for row in rows:
      for name, value in row.values.items():
        tag = re.sub(r"[^\w\-./]", "_", name)
        self._writer.add_scalar(tag, value, row.step)
    self._writer.flush()

  def table(self, step: int, table: Table) -> None:
    """Logs a table in Markdown; long texts as blocks below their prompts."""
    if table.name == "trees":
      for i, (prompt, tree) in enumerate(table.rows):
        text = f"{_cell(prompt)}\n\n{_code(tree)}"
        self._writer.add_text(f"trees/{i}", text, step)
      return
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    text = "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in lines)
    self._writer.add_text(table.name, text, step)

  def page(self, step: int, name: str, text: str) -> None:
    """TensorBoard shows no pages: the run's folder has it."""

  def close(self) -> None:
    """Waits until all is written."""
    self._writer.close()


def _cell(value: Any) -> str:
  """A cell of a Markdown table, whatever a model wrote."""
  text = html.escape(" ".join(str(value).split()))
  return re.sub(r"([\\`*_|\[\]#])", r"\\\1", text)


def _code(text: str) -> str:
  """A block that Markdown leaves as it is."""
  return "\n".join(f"    {line}" for line in text.splitlines())


class WandB:
  """Weights & Biases; WANDB_MODE=offline keeps all in the run's folder."""

  def __init__(self, opening: Opening):
    """Goes on with the run of the same id, where there is one."""
    import wandb  # pyright: ignore[reportMissingImports]

    self._wandb = wandb
    self.id = opening.id or uuid.uuid4().hex[:8]
    self._run = wandb.init(
      project=None if _told("WANDB_PROJECT") else PROJECT,
      id=self.id,
      name=opening.name,
      dir=str(opening.folder),
      config=dict(opening.config),
      resume="allow",
      reinit="create_new",  # Several runs may train in one program.
      settings=wandb.Settings(console="off"),  # The progress bar is ours.
    )

  def write(self, rows: Sequence[Row]) -> None:
    """Logs rows, in their order, each at once: it may be the last."""
    for row in rows:
      self._run.log(dict(row.values), step=row.step, commit=True)

  def table(self, step: int, table: Table) -> None:
    """Logs a table, behind the rows."""
    rows = [list(row) for row in table.rows]
    shown = self._wandb.Table(columns=list(table.columns), data=rows)
    self._run.log({table.name: shown})

  def page(self, step: int, name: str, text: str) -> None:
    """Logs a page of HTML, behind the rows."""
    self._run.log({name: self._wandb.Html(text, inject=False)})

  def close(self) -> None:
    """Waits until all is written."""
    self._run.finish()


class Trackio:
  """trackio, on this machine or in a Space (TRACKIO_SPACE_ID)."""

  def __init__(self, opening: Opening):
    """Goes on with the run of the same name, where there is one."""
    with contextlib.redirect_stdout(sys.stderr):
      import trackio  # pyright: ignore[reportMissingImports]

      self._trackio = trackio
      self.id = opening.id or f"{opening.name}-{uuid.uuid4().hex[:8]}"
      self._run = trackio.init(
        project=_told("TRACKIO_PROJECT") or PROJECT,
        name=self.id,
        config=dict(opening.config),
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
      )

  def write(self, rows: Sequence[Row]) -> None:
    """Logs rows, in their order."""
    for row in rows:
      self._run.log(dict(row.values), step=row.step)

  def table(self, step: int, table: Table) -> None:
    """Logs a table."""
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    self._run.log({table.name: self._trackio.Table(data=rows)}, step=step)

  def page(self, step: int, name: str, text: str) -> None:
    """Logs a page of HTML."""
    self._run.log({name: self._trackio.Html(text)}, step=step)

  def close(self) -> None:
    """Waits until all is written."""
    with contextlib.redirect_stdout(sys.stderr):
      self._run.finish()


class MLflow:
  """MLflow, where MLFLOW_TRACKING_URI says, or else in its own default."""

  _AT_ONCE = 1_000  # Metrics in a call, which MLflow takes at most.

  def __init__(self, opening: Opening):
    """Goes on with the run of the same id."""
    import mlflow  # pyright: ignore[reportMissingImports]

    self._metric = mlflow.entities.Metric
    self._client = client = mlflow.MlflowClient()
    self.id = opening.id or ""
    if opening.id is None:
      name = _told("MLFLOW_EXPERIMENT_NAME") or PROJECT
      found = client.get_experiment_by_name(name)
      place = found.experiment_id if found else client.create_experiment(name)
      run = client.create_run(place, run_name=opening.name)
      self.id = run.info.run_id
      client.log_dict(self.id, dict(opening.config), "config.json")
    else:
      client.update_run(self.id, status="RUNNING")

  def write(self, rows: Sequence[Row]) -> None:
    """Logs rows, in their order; for signs that MLflow refuses stands `_`."""
    now = int(1000 * time.time())
    metrics = [
      self._metric(re.sub(r"[^\w\-. :/]", "_", name), value, now, row.step)
      for row in rows
      for name, value in row.values.items()
    ]
    for start in range(0, len(metrics), self._AT_ONCE):
      part = metrics[start : start + self._AT_ONCE]
      self._client.log_batch(self.id, metrics=part)

  def table(self, step: int, table: Table) -> None:
    """Logs a table."""
    columns = zip(*table.rows, strict=True)
    content = {
      name: list(column)
      for name, column in zip(table.columns, columns, strict=True)
    }
    self._client.log_table(self.id, content, f"{table.name}.json")

  def page(self, step: int, name: str, text: str) -> None:
    """Logs a page of HTML."""
    self._client.log_text(self.id, text, f"{name}.html")

  def close(self) -> None:
    """Says that the run is over."""
    self._client.set_terminated(self.id)


def _told(variable: str) -> str | None:
  """What a service's own variable says."""
  return os.environ.get(variable)


class Service(NamedTuple):
  """A service by name."""

  open: Callable[[Opening], Tracker]
  package: str


SERVICES = {
  "tensorboard": Service(TensorBoard, "tensorboardX"),
  "wandb": Service(WandB, "wandb"),
  "trackio": Service(Trackio, "trackio"),
  "mlflow": Service(MLflow, "mlflow"),
}


def is_installed(service: str) -> bool:
  """Whether a service's package can be imported."""
  return importlib.util.find_spec(SERVICES[service].package) is not None
