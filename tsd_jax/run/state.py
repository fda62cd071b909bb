"""What one run has done so far: in memory, in its folder, in checkpoints."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import logging

from tsd_jax.base import config_json, output_files
from tsd_jax.base.errors import UserError
from tsd_jax.base.ledger import Ledger
from tsd_jax.learning.iteration import TrainState
from tsd_jax.parallel import processes
from tsd_jax.run import (
  audit,
  checks,
  directory,
  evaluation,
  hacking,
  problems,
  report,
  tracking,
)
from tsd_jax.run.checkpoint import Checkpointer
from tsd_jax.run.curves import read_curve
from tsd_jax.run.experiment import Experiment
from tsd_jax.run.live import Live
from tsd_jax.tasks import data


class RunState:
  """A run's counts, rows and checkpoints; the leading process writes them."""

  def __init__(
    self,
    config: Experiment,
    folder: pathlib.Path,
    prompts: data.PromptIterator,
    digests: Mapping[str, str],
  ):
    """Claims the folder, and makes it where there is none.

    Args:
      config: the run.
      folder: its folder.
      prompts: where it takes them from; goes on with the run.
      digests: of each split's problems (`data.digest`).

    Raises:
      UserError: if the folder holds another run, or another process trains
        there.
    """
    self.config, self.folder, self.prompts = config, folder, prompts
    self.ledger, self.step, self.seconds = Ledger(), 0, 0.0
    self.last_eval: dict[str, dict[str, Any]] = {}
    self.detector: hacking.Detector | None = None
    if config.audit is not None:
      self.detector = hacking.Detector(config.audit, config.evaluations)
    self.outcome = checks.Outcome(config.make_task().reward.low)
    self._log: directory.RowLog | None = None
    self._live: Live | None = None
    self._tracking = tracking.NONE
    with contextlib.ExitStack() as claimed:

      def claim() -> None:
        claimed.enter_context(directory.sole_writer(folder))
        directory.prepare(config, folder, digests)

      processes.by_the_leader(claim)
      self._checkpointer = Checkpointer(folder)
      claimed.callback(self._checkpointer.close)
      self._claimed = claimed.pop_all()

  def __enter__(self):
    """Everything is open."""
    return self

  def __exit__(self, *error):
    """Waits until all is on disk, and lets go of the folder."""
    self._claimed.close()

  @property
  def done(self) -> bool:
    """Whether every iteration is made."""
    return self.step >= self.config.iterations

  @property
  def suspected(self) -> bool:
    """Whether the audit has told of hacking, and the run is to end then."""
    detector, of = self.detector, self.config.audit
    return bool(of and of.stop and detector and detector.alarm)

  @property
  def finished(self) -> bool:
    """Whether nothing is left to do, the report included."""
    return self.done and directory.finished(self.folder)

  def resume(self, state: TrainState) -> TrainState:
    """Goes on where the newest whole checkpoint ends.

    Args:
      state: the one that a new run starts from.

    Returns:
      The checkpoint's, or the given one where there is no checkpoint.

    Raises:
      UserError: the checkpoint is of other prompts.
    """
    restored = self._checkpointer.restore(state._asdict())
    if restored is not None:
      arrays, saved = restored
      state = TrainState(**arrays)
      self.step, self.seconds = saved["step"], saved["seconds"]
      self.ledger, self.last_eval = Ledger(**saved["ledger"]), saved["eval"]
      if self.detector is not None and saved.get("audit"):
        self.detector.restore(saved["audit"])
      try:
        self.prompts.set_state(saved["prompts"])
      except ValueError as error:  # Of a folder without data.json.
        raise UserError(f"{self.folder}: {error}") from error
    if self.finished:
      if processes.leads():
        self.outcome.see(directory.read_rows(self.folder), last=True)
      return state
    if restored is not None:
      logging.warning("resuming %s at iteration %d", self.folder, self.step)
      self._tell_of_schedule(restored[1]["iterations"])
    # Without a checkpoint even the start's row is written again.
    step = self.step if restored is not None else -1
    processes.by_the_leader(lambda: self._open_rows(step))
    return state

  def _open_rows(self, step: int) -> None:
    """Keeps the rows up to a step, and opens their file."""
    for mark in (directory.SAMPLES, directory.BROKEN):
      with output_files.writing(self.folder / mark):
        (self.folder / mark).unlink(missing_ok=True)
    rows = self.folder / directory.METRICS
    newest = directory.newest_step(rows)
    kept = directory.keep_rows(rows, step)
    self.outcome.see(kept)
    self._log = directory.RowLog(rows)
    self._show(kept, newest)

  def _show(self, kept: list[dict[str, Any]], newest: int) -> None:
    """Opens what is shown of the run while it goes on."""
    config = self.config
    self._live = Live(config.algorithm, self.folder, self._mode)
    self._tracking = tracking.start(
      config.log, self.folder, config_json.to_dict(config), kept, newest
    )
    self._claimed.callback(self._tracking.close)
    if kept:  # Of a run that had ended the page says so.
      self._live.refresh(evaluated=True)

  @property
  def _mode(self) -> str:
    return evaluation.headline(self.config.eval.modes)

  def _tell_of_schedule(self, before: int) -> None:
    """Says what a run of another length does to its learning rate.

    Args:
      before: iterations that the run was to have.
    """
    now = self.config.iterations
    if self.config.optimizer.linear_decay and now != before:
      logging.warning(
        "the learning rate now falls to 0 at iteration %d instead of %d: it "
        "goes on at %.0f %% of the first, where it stood at %.0f %%",
        *(now, before),
        *(100 * max(0.0, 1 - self.step / n) for n in (now, before)),
      )

  def add_rates(self, rows: list[dict[str, Any]]) -> None:
    """Adds the learning rate to rows of training."""
    optimizer, iterations = self.config.optimizer, self.config.iterations
    for row in rows:
      row["learning_rate"] = optimizer.rate_at(row["step"] - 1, iterations)

  def write(self, rows: list[dict[str, Any]]) -> None:
    """Appends rows to metrics.jsonl."""
    self.outcome.see(rows, last=self.done)
    if self._log is not None:
      self._log.write(rows)
    self._tracking.write(rows)
    if self._live is not None:
      self._live.refresh(evaluated=any("eval" in row for row in rows))

  def keep_problems(
    self, solved: problems.Solved, asked: Callable[[], problems.Asked]
  ) -> None:
    """Keeps how far each held-out problem is solved.

    Args:
      solved: by mode.
      asked: gives the problems.
    """
    if self._live is not None:
      self._live.keep(self.config.eval.split, self.step, solved, asked)

  def audited(self, found: audit.Audited) -> dict[str, Any]:
    """Takes note of what the audit found, and warns once.

    Args:
      found: at an evaluation.

    Returns:
      What the metrics row holds of it.
    """
    assert self.detector is not None
    alarms = self.detector.see(found.seen)
    if alarms and not self.detector.alarm:
      step, (why, *_) = found.seen.step, alarms.values()
      self.detector.alarm = f"iteration {step}: {why}"
      logging.warning(
        "%s: the reward may be hacked; %s (%s lists such answers)",
        *(self.folder, self.detector.alarm, directory.REPORT),
      )
    if self._live is not None:
      self._live.keep_rejected(found)
    return found.row(alarms)

  def check_audit(self) -> None:
    """Says why a run has ended that is suspected.

    Raises:
      UserError: it has.
    """
    if self.suspected and not self.done:
      assert self.detector is not None
      raise UserError(
        f"{self.folder} was stopped by its audit ({self.detector.alarm}); "
        f"{self.kept()}. Change the reward and use another --workdir, or go on "
        "with --config.audit.stop=false"
      )

  def finish(self, shown: list[dict[str, Any]]) -> None:
    """Writes report.html and samples.json, with which the run has ended.

    Args:
      shown: samples and trees, as samples.json holds them.

    Raises:
      UserError: if they cannot be written.
    """
    name, file = self.config.algorithm, self.folder / directory.REPORT
    log = report.read_log(self.folder)._replace(samples=shown, finished=True)
    curve = read_curve(self.folder, self._mode)
    page = report.page(name, log, curve, self._mode)
    directory.write_whole(file, page)
    directory.write_whole(
      self.folder / directory.SAMPLES, json.dumps(shown, indent=2) + "\n"
    )
    self._tracking.finish(self.step, shown, page)

  def end(self) -> None:
    """Writes the rows that could not be written before.

    Raises:
      UserError: if that is still impossible.
    """
    if self._log is not None:
      self._log.finish()

  def behind(self) -> bool:
    """Whether the newest save failed, in any process."""
    return processes.any_says(self._checkpointer.behind())

  def kept(self) -> str:
    """Says which checkpoint the run would go on from."""
    steps = self._checkpointer.steps()
    if not steps:
      return "there is no checkpoint yet"
    return f"the checkpoint of iteration {steps[0]} is kept"

  def check_rows(self, rows: list[dict[str, Any]]) -> None:
    """Stops a run whose newest metrics broke.

    Raises:
      UserError: they have.
    """
    with self._marking():
      checks.check_rows(rows, str(self.folder), self.kept())

  @contextlib.contextmanager
  def _marking(self) -> Iterator[None]:
    """Leaves a file that says so where numbers are found broken."""
    try:
      yield
    except UserError as error:
      if processes.leads():
        output_files.write_whole(self.folder / directory.BROKEN, f"{error}\n")
      raise

  def save(self, state: TrainState, *, wait: bool = False) -> None:
    """Writes a checkpoint.

    Args:
      state: the run's.
      wait: return only when it is on disk.

    Raises:
      UserError: if that is waited for and impossible, or the state is broken.
    """
    with self._marking():
      checks.check_state(state, self.step, str(self.folder), self.kept())
    record = dict(
      step=self.step,
      seconds=self.seconds,
      ledger=dataclasses.asdict(self.ledger),
      iterations=self.config.iterations,
      prompts=self.prompts.get_state(),
      eval=self.last_eval,
      audit=self.detector.to_json() if self.detector else None,
    )
    write = self._checkpointer.save_now if wait else self._checkpointer.save
    write(self.step, state._asdict(), record)
