"""The process that calls a reward function: python -m tsd_jax.rewards.worker.

It is started by `pool.Pool` and talks JSON over one pipe. A function that reads
model output may be led to do anything, so its process is one to lose, and the
parent reads nothing from it but numbers and short texts.
"""

import importlib
import json
import math
import numbers
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# What may go wrong with one sample. The parent tells the last two.
RAISED, WRONG_TYPE, NOT_FINITE, OUT_OF_RANGE, TIMED_OUT, DIED = KINDS = (
  "raised",  # The function raised an exception, for lack of memory too.
  "wrong_type",  # It returned no number.
  "not_finite",  # It returned NaN or an infinity.
  "out_of_range",  # It returned a number outside [0, 1].
  "timed_out",  # It was killed when its time was over.
  "died",  # Its process ended, or answered nonsense.
)
_DETAIL = 300  # Characters of an error that are kept.


def find(name: str) -> Callable[[str, str, Any], float]:
  """Imports a function by its full name, such as `package.module.function`.

  Raises:
    ImportError: there is none; AttributeError: it is not in its module.
  """
  module, _, function = name.rpartition(".")
  return getattr(importlib.import_module(module), function)


def judge(reward: Any) -> tuple[float, str | None, str]:
  """Checks what a reward function returned: reward, kind of fault, detail."""
  if not isinstance(reward, numbers.Real):  # A bool is one.
    return 0.0, WRONG_TYPE, f"returned {type(reward).__name__}: {reward!r}"
  number = float(reward)
  if not math.isfinite(number):
    return 0.0, NOT_FINITE, f"returned {number}"
  if not 0.0 <= number <= 1.0:
    return 0.0, OUT_OF_RANGE, f"returned {number}, not in [0, 1]"
  return number, None, ""


def grade(fn: Callable, prompt: str, response: str, example: Any):
  """Calls the function; whatever it raises is an answer too."""
  try:
    return judge(fn(prompt, response, example))
  except BaseException as error:  # SystemExit and KeyboardInterrupt as well.
    return 0.0, RAISED, f"{type(error).__name__}: {error}"


def main(pipe: Connection, name: str, seconds: float, memory_mib: int) -> None:
  """Answers requests until the pipe closes.

  A request is a list of [prompt, response, example]; each is answered on its
  own, with [reward, kind of fault or null, detail].

  Args:
    pipe: to the parent.
    name: full name of the reward function.
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
      number, kind, detail = grade(fn, *request)
      signal.setitimer(signal.ITIMER_REAL, 0)
      answer = [number, kind, detail[:_DETAIL]]
      pipe.send_bytes(json.dumps(answer).encode())


if __name__ == "__main__":
  main(
    Connection(int(sys.argv[1])),
    sys.argv[2],
    float(sys.argv[3]),
    int(sys.argv[4]),
  )
