"""The process that calls a host function: python -m tsd_jax.rewards.worker.

The function is a reward, which returns a number, or a tool, which returns a
text. A function that reads model output may be led to do anything: replace
what its module or Python's own hold, fork, write wherever it can, stand still.
So the process that `pool.Pool` talks to never calls it. It forks a child for a
call, believes nothing of what the child sends but a number or a short text
under the call's token, and kills the child with all that it started. Calls of
a function that can be seen to leave nothing behind (`purity.py`) share a child.
"""

import contextlib
import dataclasses
import gc
import json
import math
import numbers
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tsd_jax.base import names
from tsd_jax.base.errors import UserError
from tsd_jax.rewards import isolation, purity
from tsd_jax.rewards.channel import LONGEST, Channel

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
_TOKEN = 16  # Characters.
# What reading nonsense raises: a number may be too large for a float.
NO_ANSWER = (EOFError, OSError, ValueError, TypeError, OverflowError)

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


@dataclasses.dataclass(frozen=True)
class Job:
  """What a worker is told when it is started.

  Attributes:
    name: full name of the function.
    returns: what it may return.
    seconds: the time limit of a call.
    memory_mib: address space of a process.
    shared: whether calls share a process, whatever the function is.
    network: whether the function may use it.
    parent: number of the process that starts the worker.
  """

  name: str
  returns: Returns
  seconds: float
  memory_mib: int
  shared: bool
  network: bool
  parent: int

  def text(self) -> str:
    """As JSON, for a command line."""
    kind = type(self.returns).__name__
    return json.dumps(vars(self) | {"returns": [kind, *self.returns]})

  @classmethod
  def read(cls, text: str) -> "Job":
    """From JSON."""
    fields = json.loads(text)
    kind, *limits = fields["returns"]
    returns = {"Number": Number, "Text": Text}[kind](*limits)
    return cls(**fields | {"returns": returns})


def _returned(value: Any) -> str:
  return f"returned {type(value).__name__}: {value!r}"


def call(
  fn: Callable, returns: Returns, prompt: str, response: str, example: Any
) -> Judged:
  """Calls the function; whatever it raises is an answer too."""
  try:
    return returns.judge(fn(prompt, response, example))
  except BaseException as error:  # SystemExit and KeyboardInterrupt as well.
    return returns.failed, RAISED, f"{type(error).__name__}: {error}"


def checked(answer: Any, returns: Returns) -> Judged:
  """An answer as `call` gives it, from a process that may have lost its head.

  Raises:
    ValueError, TypeError, OverflowError: it is none.
  """
  value, kind, detail = answer
  if kind is not None and kind not in KINDS:
    raise ValueError(f"unknown kind {kind!r}")
  value, fault, _ = returns.judge(value)
  if fault is not None or (kind is not None and value != returns.failed):
    raise ValueError(f"no {returns.noun} {value!r}")
  return value, kind, str(detail)[:_DETAIL]


def parsed(text: bytes) -> Any:
  """JSON from a process that may have lost its head.

  Raises:
    ValueError: it is none, or nested too deeply.
  """
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError("brackets without end") from None


class Server:
  """Answers requests; the function is called in children only.

  Attributes:
    together: whether calls share a child.
  """

  def __init__(self, channel: Channel, fn: Callable, job: Job):
    """Looks at the function.

    Args:
      channel: to the process that asks.
      fn: the function.
      job: its limits.
    """
    self._channel, self._fn = channel, fn
    self._returns, self._seconds = job.returns, job.seconds
    self.together = job.shared or purity.is_pure(fn)
    gc.collect()
    gc.freeze()  # A child's collections would copy what it shares with us.

  def run(self) -> None:
    """Answers until nobody asks any more.

    A message is [number, requests]. What comes back, in one message or more, is
    [number, answers], each of them [number or text, kind of fault or null,
    detail].
    """
    while True:
      try:
        number, requests = json.loads(self._channel.receive(None))
      except EOFError:
        return
      for answers in self._answers(requests):
        self._channel.send(json.dumps([number, answers]).encode(), None)

  def _answers(self, requests: Sequence) -> Iterator[list[Judged]]:
    if self.together and len(requests) > 1:
      answers, fault = self._ask_child(requests)
      yield answers if fault is None else []  # A sign of life: it took time.
      if fault is None:
        return
    # Or one of them was at fault: each by itself shows which.
    for request in requests:
      answers, fault = self._ask_child([request])
      yield answers if fault is None else [(self._returns.failed, *fault)]

  def _ask_child(
    self, requests: Sequence
  ) -> tuple[list[Judged], tuple[str, str] | None]:
    """Calls the function on requests, one after the other, in one child.

    Args:
      requests: [prompt, response, example] of each; all have the time of one.

    Returns:
      The answers and None, or none and the kind of fault with its detail.
    """
    ours, theirs = socket.socketpair()
    parent, pid = os.getpid(), os.fork()
    if not pid:
      with contextlib.suppress(BaseException):
        ours.close()
        self._channel.close()
        self._child(parent, theirs, requests)
      os._exit(1)
    theirs.close()
    channel = Channel(ours, LONGEST * len(requests))
    try:
      # Made after the fork, and read by the child when the function has
      # returned: what that writes to every open file is no answer.
      token = os.urandom(_TOKEN // 2).hex().encode()
      channel.send(token, self._seconds)
      said, _, text = channel.receive(self._seconds).partition(b" ")
      if said != token:
        raise ValueError("an answer to nothing that was asked")
      answers = parsed(text)
      if len(answers) != len(requests):
        raise ValueError(f"{len(answers)} answers")
      return [checked(answer, self._returns) for answer in answers], None
    except TimeoutError:
      return [], (TIMED_OUT, f"killed after {self._seconds} s")
    except NO_ANSWER as error:
      return [], (DIED, f"{type(error).__name__}: {error}")
    finally:
      for kill in os.killpg, os.kill:  # It may not lead its group yet.
        with contextlib.suppress(ProcessLookupError):
          kill(pid, signal.SIGKILL)
      os.waitpid(pid, 0)
      channel.close()
      isolation.end_children()

  def _child(self, parent: int, end: socket.socket, requests: Sequence) -> None:
    """Calls the function, in a process that ends with it."""
    os.setpgid(0, 0)
    if parent != 1:  # Number 1 of a namespace takes all others with it.
      isolation.tie_to(parent)
    answers = [call(self._fn, self._returns, *r) for r in requests]
    text = f" {json.dumps(answers)}\n".encode()
    end.sendall(end.recv(_TOKEN, socket.MSG_WAITALL) + text)


def main(end: socket.socket, job: Job) -> None:
  """Imports a function, says so, and answers requests until the pipe closes.

  What is said first is [error of the import or "", reason why the worker has no
  namespaces of its own or "", whether calls share a child].

  Args:
    end: of the pair whose other end the parent has.
    job: what to do.
  """
  isolation.tie_to(job.parent)
  refused = isolation.refusal()
  if not refused:
    isolation.enter_namespaces(job.network)
    if pid := os.fork():  # The child is the worker, number 1 of its namespace.
      end.close()
      os.waitpid(pid, 0)
      return
    os.setsid()
    isolation.tie_to(0)  # A parent outside has no number.
  channel = Channel(end, longest=None)
  try:
    fn = names.find(job.name)
  except BaseException as error:
    said = str(error)
    if not isinstance(error, UserError):  # Which names its remedy.
      said = (
        f"{type(error).__name__}: {said}; define it in a module that can be "
        "imported, not in a notebook, a shell or a config file"
      )
    channel.send(json.dumps([said, refused, False]).encode(), None)
    return
  isolation.confine(job.memory_mib, not refused)
  server = Server(channel, fn, job)
  channel.send(json.dumps(["", refused, server.together]).encode(), None)
  server.run()


if __name__ == "__main__":
  main(socket.socket(fileno=int(sys.argv[1])), Job.read(sys.argv[2]))
