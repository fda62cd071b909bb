"""What stops a run or is said of it: broken numbers, rewards that fail."""

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from tsd_jax.base.errors import UserError
from tsd_jax.models import weights

# No weight of a language model is larger; far from where float32 ends.
LARGEST_WEIGHT = 1e6
_PATIENCE = 10  # Iterations without any reward, before that is said.


def check_rows(rows: list[dict[str, Any]], where: str, kept: str) -> None:
  """Stops a run whose metrics broke.

  Args:
    rows: its newest metrics.
    where: names the run.
    kept: says which checkpoint there is.

  Raises:
    UserError: naming the metric and the iteration.
  """
  for row in rows:
    bad = dict(_broken_numbers(row))
    if bad:
      name, value = next(iter(bad.items()))
      names = name if len(bad) == 1 else ", ".join(list(bad)[:5])
      raise _broken(where, row["step"], names, value, kept)


def _broken_numbers(
  row: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, float]]:
  """Numbers of a row that are none, by name; those of evaluations too."""
  for name, value in row.items():
    if isinstance(value, Mapping):
      yield from _broken_numbers(value, f"{prefix}{name}.")
    elif isinstance(value, float) and not math.isfinite(value):
      yield f"{prefix}{name}", value


def check_state(state: Any, step: int, where: str, kept: str) -> None:
  """Stops a run whose next checkpoint would be broken.

  Args:
    state: its TrainState.
    step: iterations made.
    where: names the run.
    kept: says which checkpoint there is.

  Raises:
    UserError: naming the array, if one is not finite, or a parameter so large
      that no update brings it back.
  """
  largest, _ = jax.tree_util.tree_flatten_with_path(
    jax.device_get(_largest(state._asdict()))
  )
  for path, value in largest:
    name, (field, *_) = jax.tree_util.keystr(path), path
    most = LARGEST_WEIGHT if field.key == "params" else math.inf
    if not (math.isfinite(value) and value <= most):
      raise _broken(where, step, name, value, kept)


@jax.jit
def _largest(tree):
  """The largest magnitude in every array of floats; NaN where there is one."""
  return jax.tree.map(
    lambda a: (
      weights.largest(a)
      if jnp.issubdtype(a.dtype, jnp.floating)
      else jnp.float32(0)
    ),
    tree,
  )


def _broken(where, step, what, value, kept) -> UserError:
  remedy = (
    "Try a lower --config.optimizer.learning_rate or --config.loss.clip_high"
  )
  if re.search(r"\b(search_|champion_)?reward", what):
    remedy = "See what the reward gives: it must be a number"
  return UserError(
    f"{where}, iteration {step}: {what} became {value:g}; {kept}. {remedy}"
  )


class Outcome:
  """Whether a run has earned any reward, and host calls came to one."""

  def __init__(self, low: float):
    """Nothing is known yet.

    Args:
      low: the least reward.
    """
    self._low, self._iterations = low, 0
    self._earned = self._said = False
    self._calls = collections.Counter()

  def see(self, rows: list[dict[str, Any]], *, last: bool = False) -> None:
    """Takes note of metrics rows; warns once where no reward comes.

    Args:
      rows: of the run, each once.
      last: whether the run ends with them.
    """
    for row in rows:
      self._calls.update(row.get("host_rewards", {}))
      if "reward" in row:
        self._iterations += 1
        # A search may find what no sample does.
        best = max(row["reward"], row.get("search_reward", self._low))
        self._earned |= best > self._low
    late = last or self._iterations >= _PATIENCE
    if self._iterations and late and not (self._earned or self._said):
      self._said = True
      logging.warning(
        "no response in %d iterations earned more than the least reward, %g: "
        "there is nothing to learn from. Try a search of more nodes "
        "(--config.search.num_simulations), a start that solves something "
        "(--config.init), or a reward that also tells worse from better",
        self._iterations,
        self._low,
      )

  def check(self) -> None:
    """Refuses to call a run done whose reward was never computed.

    Raises:
      UserError: every call of the reward function came to nothing.
    """
    kinds = dict(self._calls)
    calls = kinds.pop("graded", 0)
    if calls and sum(kinds.values()) >= calls:
      faults = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
      raise UserError(
        f"none of {calls} calls of the reward function came to a reward "
        f"({faults}): all got the least one. The log shows the first faults; "
        "mend the function and use another --workdir"
      )
