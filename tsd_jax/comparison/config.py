"""What a comparison is: an experiment, methods, and what all may use."""

import dataclasses
import math
import re
from collections.abc import Iterator

from tsd_jax.base import config as config_lib
from tsd_jax.base import temperature
from tsd_jax.base.errors import UserError, refuse
from tsd_jax.comparison import counts, entrants, tuning
from tsd_jax.comparison.entrants import METHODS, Method, Spent
from tsd_jax.comparison.tuning import Point
from tsd_jax.run import costs, evaluation, train
from tsd_jax.run.experiment import Experiment
from tsd_jax.tasks import data

TUNING, CURVES = "tuning", "validation"  # Splits of trials, and of curves.
_NOTHING = Spent(0, 0)  # Of tsd, which asks for nobody's tokens.


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Methods on one task, each at the best of as many trials.

  Raises:
    ValueError: methods cannot be compared so.
  """

  experiment: Experiment
  tokens: float  # Of the ledger, that every run spends.
  methods: tuple[Method, ...] = METHODS
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  # Settings that every method tries, on problems of their own (`tuning`).
  trials: int = 10
  # What they change, beside what is a method's own (`entrants.own_knobs`).
  knobs: tuple[str, ...] = (
    "optimizer.learning_rate",
    "optimizer.minibatches",
  )
  # Where the climb of methods of policy gradients alone begins, whose best rate
  # is far below that of lessons; 0: with the experiment's, as all others.
  gradient_rate: float = 0.0
  score: str = "mean@16"  # Modes whose mean chooses a setting.
  sweep_seed: int = 100  # None of the seeds that count.
  mode: str = "mean@16"  # Of curves, which are of validation problems.
  split: str = "test"  # Read once all settings are chosen.
  samples: int = 64  # Responses to each of its problems.
  # What other test problems have of the task's config, as FIELD=VALUE,...:
  # problems unlike those of train, which are answered and choose nothing.
  shifted: str = ""
  # Of sampling; each method has the best of them, chosen with its settings.
  temperatures: tuple[float, ...] = (0.4, 0.6, 0.8, 1.0)
  # Runs of a method in one program (`train.train_vmapped`), for accelerators
  # that one small model does not fill. On a CPU one is fastest.
  runs: int = 1

  def __post_init__(self):
    """Refuses what cannot be compared, before any run."""
    refuse(self._violations())
    for method in self.methods:
      run = self.run(
        method, self.recipe(method), self.seeds[0], CURVES, self.forecast
      )
      # Those of one program have one device.
      train.check_alike([run] * min(2, self.runs))

  def _violations(self) -> Iterator[str]:
    methods, task = self.methods, self.experiment.task
    if len(methods) < 2 or methods[0] != "tsd":
      yield f"methods={','.join(methods)} must begin with tsd and name another"
    if len(set(methods)) < len(methods):
      yield f"methods={','.join(methods)} repeats one"
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      yield f"seeds={self.seeds} must be distinct, at least one"
    if self.sweep_seed in self.seeds:
      yield f"sweep_seed={self.sweep_seed} must be none of seeds={self.seeds}"
    for field in ("trials", "samples", "runs"):
      if getattr(self, field) < 1:
        yield f"{field}={getattr(self, field)} must be at least 1"
    if self.samples > counts.MOST:
      yield f"samples={self.samples} must be at most {counts.MOST}"
    if not 0 < self.tokens < math.inf:
      yield f"tokens={self.tokens} must be above 0, and finite"
    for seed in (*self.seeds, self.sweep_seed):
      if not 0 <= seed < 2**32:
        yield f"seed {seed} must be an integer in 0..2**32-1"
    yield from entrants.knob_violations(methods, self.experiment, self.knobs)
    if self.trials > 1 and not task.tuning_size:
      yield (
        f"trials={self.trials} need problems of their own: set "
        "experiment.task.tuning_size=512, or trials=1"
      )
    if not task.validation_size:
      yield "curves need problems: set experiment.task.validation_size"
    if self.split in (TUNING, CURVES, "train"):
      yield f"split={self.split} made or chose the settings: use test"
    elif self.split not in (filled := data.filled_splits(task)):
      yield (
        f"split={self.split} holds no problems of the task, but "
        f"{', '.join(filled)} do: set experiment.task.test_size"
      )
    usable = map(temperature.is_allowed, self.temperatures)
    if not self.temperatures or not all(usable):
      yield (
        f"temperatures={self.temperatures} must be {temperature.ALLOWED}, at "
        "least one"
      )
    shown = [name.strip() for name in self.experiment.eval.modes.split(",")]
    for mode in (self.mode, *self.score.split(",")):
      if mode not in shown:
        yield (
          f"{mode} is not one of experiment.eval.modes="
          f"{self.experiment.eval.modes}: add it there"
        )
    evaluation.parse_modes(self.experiment.eval.modes)
    if self.shifted:
      yield from self._unlike()

  def _unlike(self) -> Iterator[str]:
    """Shifted problems must fit the model's prompts and the same reward."""
    if not re.fullmatch(r"\w+=[^,=]+(,\w+=[^,=]+)*", self.shifted):
      yield f"shifted={self.shifted!r} must be FIELD=VALUE,FIELD=VALUE"
      return
    task = self.experiment.task
    other = counts.shifted(task, self.shifted)
    if other.make().response_length != task.make().response_length:
      yield f"shifted={self.shifted!r} must leave the length of responses"

  @property
  def forecast(self) -> Spent:
    """What an iteration of tsd takes by its recipe, if trees spend it all."""
    ours = self.experiment.learner_config()
    nodes = ours.prompts * ours.search.num_simulations
    return Spent(nodes, costs.iteration_tokens(self.experiment))

  def fields(self, method: Method) -> tuple[str, ...]:
    """The knobs of a method, in the order in which they are tried.

    A method's own stand behind the first of all methods, so that few trials
    reach them too.
    """
    return (*self.knobs[:1], *entrants.own_knobs(method), *self.knobs[1:])

  def recipe(self, method: Method) -> Point:
    """The point from which a method's settings are tried."""
    return (0,) * len(self.fields(method))

  def values(self, method: Method, point: Point) -> dict[str, str]:
    """What a point sets, as flags say it.

    Raises:
      UserError: a knob does not go so far.
    """
    found = {}
    for field, steps in zip(self.fields(method), point, strict=True):
      start = self._begin(method, field)
      value = tuning.value(start, steps)
      if value is None:
        raise UserError(f"{field}={start} has no value {steps} steps away")
      found[field] = str(value).lower()
    return found

  def _begin(self, method: Method, field: str) -> int | float | bool:
    rate = field == "optimizer.learning_rate" and self.gradient_rate
    if rate and method in entrants.GRADIENTS_ALONE:
      return rate
    return entrants.recipe(method, self.experiment, field)

  def name(self, method: Method, point: Point) -> str:
    """A point's name, fit for a folder."""
    return ",".join(
      f"{field.rsplit('.', 1)[-1]}={value}"
      for field, value in self.values(method, point).items()
    )

  def exists(self, method: Method, point: Point, spent: Spent) -> bool:
    """Whether a method can run with a point's settings, here."""
    try:
      run = self.run(method, point, self.sweep_seed, TUNING, spent)
      train.check_memory(run, min(self.runs, len(self.seeds)))
    except (UserError, ValueError):
      return False
    return True

  def run(
    self,
    method: Method,
    point: Point,
    seed: int,
    split: str,
    spent: Spent = _NOTHING,
    *,
    each: float = 0.0,
  ) -> Experiment:
    """The experiment of one run.

    Args:
      method: its name.
      point: its settings.
      seed: its seed.
      split: the problems of its curve.
      spent: by an iteration of tsd; tsd itself does without.
      each: ledger tokens that its iteration takes; by its settings if 0.

    Raises:
      UserError: it cannot run so.
    """
    values = self.values(method, point)
    drawn = int(values.pop(entrants.DRAWN, 0))
    base = config_lib.override(self.experiment, values)
    changes = entrants.settings(method, base, spent, drawn)
    changes |= {"seed": str(seed), "eval.split": split}
    run = config_lib.override(base, changes)
    calls = self.tokens / (each or costs.iteration_tokens(run))
    calls /= run.iterations_per_call  # A run ends with one.
    return dataclasses.replace(
      run, iterations=max(1, round(calls)) * run.iterations_per_call
    )
