"""Host functions of tokens inside a compiled program.

What goes wrong in a callback must not be raised there: the other hosts of a
pod would wait for ever. It is kept for the host's loop, which asks with
`raise_errors` after every dispatch.
"""

import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Array
from tsd_jax.rewards import pool

# (prompt_QP, response_QT) -> rewards of Q responses, in [0, 1].
HostReward = Callable[[np.ndarray, np.ndarray], np.ndarray]

_errors: list[str] = []
_left_out = False


@contextlib.contextmanager
def left_out() -> Iterator[None]:
  """Traces programs without the host, for devices that are not there.

  What stands for a reward then is a function of the tokens: the compiler leaves
  out nothing that reads it.
  """
  global _left_out
  _left_out = True
  try:
    yield
  finally:
    _left_out = False


def graded(grade: HostReward, prompt_XP: Array, response_XT: Array) -> Array:
  """Rewards that a host function gives, one call for all responses.

  Args:
    grade: called on the host; its result is checked.
    prompt_XP: integer tokens.
    response_XT: integer tokens, with the same leading axes.

  Returns:
    reward_X, float32; zeros where the call failed (`raise_errors`).
  """

  # Each device would be called for its part; JAX cannot split a callback.
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.manual_axes and set(mesh.manual_axes) != set(mesh.axis_names):
    raise UserError(
      "a reward on the host needs all axes of the mesh for prompts: set "
      "mesh.tensor=1 and mesh.serving=tensor"
    )

  if _left_out:
    return jnp.mean((response_XT % 2).astype(jnp.float32), axis=-1)

  def host(prompt_XP, response_XT):
    prompt_XP, response_XT = np.asarray(prompt_XP), np.asarray(response_XT)
    shape = response_XT.shape[:-1]
    rows = (a.reshape(-1, a.shape[-1]) for a in (prompt_XP, response_XT))
    try:
      reward_Q = np.asarray(grade(*rows))
      if reward_Q.shape != (int(np.prod(shape)),):
        raise UserError(
          f"a reward on the host returned shape {list(reward_Q.shape)} for "
          f"{int(np.prod(shape))} responses"
        )
      if not np.all((reward_Q >= 0) & (reward_Q <= 1)):
        raise UserError(
          f"a reward on the host lies outside [0, 1]: {reward_Q.tolist()[:8]}"
        )
    except Exception as error:
      own = isinstance(error, UserError)
      _errors.append(str(error) if own else f"{type(error).__name__}: {error}")
      return np.zeros(shape, np.float32)
    return reward_Q.astype(np.float32).reshape(shape)

  return jax.pure_callback(
    host,
    jax.ShapeDtypeStruct(response_XT.shape[:-1], jnp.float32),
    prompt_XP,
    response_XT,
    vmap_method="broadcast_all",
  )


def report() -> dict[str, dict[str, int]]:
  """What a row of metrics says of calls on the host since the last one.

  Returns:
    `host_rewards`: calls made, and failed ones by kind; empty without any.

  Raises:
    UserError: see `raise_errors`.
  """
  raise_errors()
  counts = pool.take_counts()
  return {"host_rewards": counts} if counts else {}


def raise_errors() -> None:
  """Raises what went wrong in callbacks since the last time.

  Raises:
    UserError: with the first of it.
  """
  if _errors:
    first, more = _errors[0], len(_errors) - 1
    _errors.clear()
    raise UserError(first + (f" (and {more} more)" if more else ""))
