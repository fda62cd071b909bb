"""Host functions of tokens inside a compiled program.

What goes wrong in a callback must not be raised there: the other hosts of a
pod would wait for ever. It is kept for the host's loop, which asks with
`raise_errors` after every dispatch.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Array
from tsd_jax.rewards import pool

# (example_Q, response_QT) -> rewards of Q responses, within their range.
HostReward = Callable[[np.ndarray, np.ndarray], np.ndarray]

# (example_Q, response_QT, length_Q) -> what is written after the first length_Q
# tokens of Q responses: tokens_QO, and how many of them there are, Q.
HostTool = Callable[
  [np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]
]

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


def graded(
  grade: HostReward,
  example_X: Array,
  response_XT: Array,
  low: float = 0.0,
  high: float = 1.0,
) -> Array:
  """Rewards that a host function gives, one call for all responses.

  Args:
    grade: called on the host; its result is checked.
    example_X: indices of the problems that were asked.
    response_XT: integer tokens, with the same leading axes.
    low: the least reward.
    high: the greatest reward.

  Returns:
    reward_X, float32; the least one where the call failed (`raise_errors`).
  """
  _check_mesh("a reward")
  if _left_out:
    return jnp.mean((response_XT % 2).astype(jnp.float32), axis=-1)

  def host(example_X, response_XT):
    shape = example_X.shape
    response_QT = response_XT.reshape(-1, response_XT.shape[-1])
    reward_Q = np.asarray(grade(example_X.reshape(-1), response_QT))
    if reward_Q.shape != (int(np.prod(shape)),):
      raise UserError(
        f"a reward on the host returned shape {list(reward_Q.shape)} for "
        f"{int(np.prod(shape))} responses"
      )
    if not np.all((reward_Q >= low) & (reward_Q <= high)):
      raise UserError(
        f"a reward on the host lies outside [{low:g}, {high:g}]: "
        f"{reward_Q.tolist()[:8]}"
      )
    return reward_Q.astype(np.float32).reshape(shape)

  return jax.pure_callback(
    _kept(host, lambda example_X, _: np.full(example_X.shape, low, np.float32)),
    jax.ShapeDtypeStruct(example_X.shape, jnp.float32),
    example_X,
    response_XT,
    vmap_method="broadcast_all",
  )


def observed(
  tool: HostTool,
  example_R: Array,
  response_RT: Array,
  length_R: Array,
  most: int,
) -> tuple[Array, Array]:
  """What a tool on the host writes after responses, one call for all that ask.

  There is no call where nobody asks, under `vmap` either: the runs of a batch
  are rows of one call.

  Args:
    tool: called on the host with the rows that ask; its result is checked.
    example_R: indices of the problems that were asked.
    response_RT: integer tokens.
    length_R: how many of them there are; 0 where a row does not ask.
    most: O, the most tokens of an answer.

  Returns:
    token_RO, int32, and how many of them are written, R; none where a row does
    not ask, or where the call failed (`raise_errors`).
  """
  _check_mesh("a tool")

  def host(example_R, response_RT, length_R):
    token_RO, count_R = nothing(example_R)
    asks_R = length_R > 0
    token_RO[asks_R], count_R[asks_R] = tool(
      *(a[asks_R] for a in (example_R, response_RT, length_R))
    )
    return token_RO, count_R

  def nothing(example_R, *_):
    R = len(example_R)
    return np.zeros((R, most), np.int32), np.zeros(R, np.int32)

  def ask(*rows):
    if _left_out:
      return rows[1][:, :most].astype(jnp.int32), rows[2] % 2
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in nothing(rows[0])]
    return tuple(jax.pure_callback(_kept(host, nothing), shapes, *rows))

  @jax.custom_batching.custom_vmap
  def rows(example_R, response_RT, length_R):
    return jax.lax.cond(
      jnp.any(length_R > 0),
      ask,
      lambda *rows: tuple(map(jnp.asarray, nothing(rows[0]))),
      *(example_R, response_RT, length_R.astype(jnp.int32)),
    )

  @rows.def_vmap
  def several(size, is_batched, *several):
    """The rows of all runs, one below the other."""
    flat = (
      jnp.broadcast_to(a, a.shape if batched else (size, *a.shape))
      for a, batched in zip(several, is_batched, strict=True)
    )
    found = rows(*(a.reshape(-1, *a.shape[2:]) for a in flat))
    found = tuple(a.reshape(size, -1, *a.shape[1:]) for a in found)
    return found, (True, True)

  return rows(example_R, response_RT, length_R)


def _check_mesh(what: str) -> None:
  """Refuses a call of which each device would make a part.

  Raises:
    UserError: JAX cannot split a callback.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.manual_axes and set(mesh.manual_axes) != set(mesh.axis_names):
    raise UserError(
      f"{what} on the host needs all axes of the mesh for prompts: set "
      "mesh.tensor=1 and mesh.serving=tensor"
    )


def _kept(host: Callable, otherwise: Callable) -> Callable:
  """A host function of arrays that raises nothing: see `raise_errors`."""

  def call(*arrays) -> Any:
    arrays = [np.asarray(a) for a in arrays]
    try:
      return host(*arrays)
    except Exception as error:
      own = isinstance(error, UserError)
      _errors.append(str(error) if own else f"{type(error).__name__}: {error}")
      return otherwise(*arrays)

  return call


def report() -> dict[str, dict[str, int]]:
  """What a row of metrics says of calls on the host since the last one.

  Returns:
    `host_rewards` and `host_tools`: calls made, and those that came to nothing
    by kind; empty without any.

  Raises:
    UserError: see `raise_errors`.
  """
  raise_errors()
  return pool.take_counts()


def raise_errors() -> None:
  """Raises what went wrong in callbacks since the last time.

  Raises:
    UserError: with the first of it.
  """
  if _errors:
    first, more = _errors[0], len(_errors) - 1
    _errors.clear()
    raise UserError(first + (f" (and {more} more)" if more else ""))
