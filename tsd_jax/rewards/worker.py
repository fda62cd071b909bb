"""The process that calls a host function: python -m tsd_jax.rewards.worker.

The function is a reward, which returns a number, or a tool, which returns a
text. The process is started by `pool.Pool` and talks JSON over one pipe. A
function that reads model output may be led to do anything, so its process is
one to lose, and the parent reads nothing from it but numbers and short texts.
"""

import json
import math
import numbers
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tsd_jax.base import names

# What may go wrong with one call. The parent tells the last two.
RAISED, WRONG_TYPE, NOT_FINITE, OUT_OF_RANGE, TIMED_OUT, DIED = KINDS = (
  "raised",  # The function raised an exception, for lack of memory too.
  "wrong_type",  # It returned no number; a tool, no text.
  "not_finite",  # It returned NaN or an infinity.
  "out_of_range",  # Its number lies outside the range, its text is too long.
  "timed_out",  # It was killed when its time was over.
  "died",  # Its process ended, or answered nonsense.
)
_DETAIL = 300  # Characters of an error that are kept.


# What was returned as JSON's own, kind of fault or None, detail.
Judged = tuple[Any, str | None, str]


class Number(NamedTuple):
  """What a reward function returns: a number in a range."""

  low: float = 0.0
  high: float = 1.0

  noun = "reward"  # What the function is, in messages.
  counted = "graded"  # What a call is, in counts.

  @property
  def failed(self) -> float:
    """What a call that failed is worth."""
    return self.low

  def judge(self, value: Any) -> Judged:
    """Checks what the function returned."""
    if not isinstance(value, numbers.Real):  # A bool is one.
      return self.low, WRONG_TYPE, _returned(value)
    number = float(value)
    if not math.isfinite(number):
      return self.low, NOT_FINITE, f"returned {number}"
    if not self.low <= number <= self.high:
      detail = f"returned {number}, not in [{self.low:g}, {self.high:g}]"
      return self.low, OUT_OF_RANGE, detail
    return number, None, ""


class Text(NamedTuple):
  """What a tool returns: a text, or None for nothing."""

  longest: int = 4_000  # Characters.

  noun = "tool"
  counted = "asked"
  failed = None  # A call that failed says nothing.

  def judge(self, value: Any) -> Judged:
    """Checks what the function returned."""
    if value is None:
      return None, None, ""
    if not isinstance(value, str):
      return None, WRONG_TYPE, _returned(value)
    if len(value) > self.longest:
      detail = f"returned {len(value)} characters, more than {self.longest}"
      return None, OUT_OF_RANGE, detail
    try:
      value.encode()
    except UnicodeEncodeError as error:  # Half a character.
      return None, WRONG_TYPE, f"returned no text: {error}"
    return value, None, ""


Returns = Number | Text
UNIT = Number()  # A reward in [0, 1].


def _returned(value: Any) -> str:
  return f"returned {type(value).__name__}: {value!r}"


def find(name: str) -> Callable[[str, str, Any], Any]:
  """Imports a function by its full name (`base.names`).

  Raises:
    ImportError: there is none; AttributeError: it is not in its module.
  """
  return names.find(name)


def call(
  fn: Callable, returns: Returns, prompt: str, response: str, example: Any
) -> Judged:
  """Calls the function; whatever it raises is an answer too."""
  try:
    return returns.judge(fn(prompt, response, example))
  except BaseException as error:  # SystemExit and KeyboardInterrupt as well.
    return returns.failed, RAISED, f"{type(error).__name__}: {error}"


def main(
  pipe: Connection,
  name: str,
  returns: Returns,
  seconds: float,
  memory_mib: int,
) -> None:
  """Answers requests until the pipe closes.

  A request is a list of [prompt, response, example]; each is answered on its
  own, with [number or text, kind of fault or null, detail].

  Args:
    pipe: to the parent.
    name: full name of the function.
    returns: what it may return.
    seconds: the time limit of a call. The parent kills this process at it;
      should the parent be gone, an alarm does.
    memory_mib: address space of this process.
  """
  try:
    fn = find(name)
  except BaseException as error:
    pipe.send_bytes(f"{type(error).__name__}: {error}".encode())
    return
  _, most = resource.getrlimit(resource.RLIMIT_AS)
  limit = memory_mib * 2**20
  if most == resource.RLIM_INFINITY or limit < most:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  pipe.send_bytes(b"")
  while True:
    try:
      requests = json.loads(pipe.recv_bytes())
    except EOFError:  # The parent has closed the pipe, or is gone.
      return
    for request in requests:
      signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)
      value, kind, detail = call(fn, returns, *request)
      signal.setitimer(signal.ITIMER_REAL, 0)
      answer = [value, kind, detail[:_DETAIL]]
      pipe.send_bytes(json.dumps(answer).encode())


def arguments(
  name: str, returns: Returns, seconds: float, memory_mib: int
) -> str:
  """What the parent says to a process it starts, as JSON."""
  kind = type(returns).__name__
  return json.dumps([name, [kind, *returns], seconds, memory_mib])


def started(pipe: str, said: str) -> None:
  """Runs `main` by what the parent said; see `arguments`."""
  name, (kind, *fields), *limits = json.loads(said)
  returns = {"Number": Number, "Text": Text}[kind](*fields)
  main(Connection(int(pipe)), name, returns, *limits)


if __name__ == "__main__":
  started(*sys.argv[1:])
