"""Worker processes that call a host function, each call within its limits.

The function is a reward or a tool (`worker.Number`, `worker.Text`). A call that
raises, hangs, returns nonsense or ends its process costs its own sample the
reward, or the tool's answer, and is counted by kind; the others get theirs.
"""

import atexit
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from absl import logging

from tsd_jax.base.errors import UserError, one_line
from tsd_jax.parallel import supervisor
from tsd_jax.rewards import isolation, worker
from tsd_jax.rewards.channel import Channel

_START_SECONDS = 120  # For the imports of a function.
_PATIENCE = 5  # Seconds beyond a call's own, after which a worker is lost.
_SHOWN = 3  # Faults of a kind that are logged.

Request = tuple[str, str, Any]  # Prompt, response, example.


@dataclasses.dataclass(frozen=True)
class PoolConfig:
  """How many processes call a function, and what a call may take."""

  workers: int = 2
  seconds: float = 5.0  # Time limit of a call.
  memory_mib: int = 4096  # Address space of a process.
  # Whether calls share processes, some hundred each, though the function is not
  # seen to leave nothing behind (`purity.py`): quicker, where it is known to.
  shared: bool = False
  network: bool = False  # Whether calls may use it.
  # Variables that calls see beside what Python needs, such as an API's key.
  environment: tuple[str, ...] = ()

  def __post_init__(self):
    """Refuses impossible limits."""
    for field in ("workers", "seconds", "memory_mib"):
      value = getattr(self, field)
      if not 0 < value < float("inf"):
        raise ValueError(f"{field}={value} must be positive and finite")


class Pool:
  """Processes that call one function; safe to use from any thread."""

  def __init__(
    self,
    name: str,
    config: PoolConfig,
    returns: worker.Returns = worker.UNIT,
  ):
    """Starts the processes and waits until they have imported the function.

    They are new programs, not copies of this one: JAX's threads do not survive
    a fork.

    Args:
      name: full name of a function of prompt, response and example.
      config: number of processes, limits.
      returns: what it returns: a reward, by default in [0, 1], or a text.

    Raises:
      UserError: the function cannot be imported.
    """
    self._name, self._config, self.returns = name, config, returns
    self._closed = False
    self._lock = threading.Lock()
    self._counts = collections.Counter()
    self._shown = collections.Counter()
    self._threads = concurrent.futures.ThreadPoolExecutor(
      config.workers, thread_name_prefix=returns.noun
    )
    self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    # In threads that last as long as the pool: workers end with theirs.
    self._workers = list(
      self._threads.map(
        lambda _: _Worker(name, config, returns), range(config.workers)
      )
    )
    atexit.register(self.close)
    try:
      for process in self._workers:
        process.wait_until_ready()
        self._idle.put(process)
    except UserError:
      self.close()
      raise

  def grade(self, requests: Sequence[Request]) -> np.ndarray:
    """Rewards of some requests, float32; see `ask`."""
    return np.array(self.ask(requests), np.float32)

  def ask(self, requests: Sequence[Request]) -> list[Any]:
    """Calls the function on every request.

    Args:
      requests: prompt, response and example (JSON) of each.

    Returns:
      What it returned: rewards within their range, or texts and None. Where a
      call failed, the least reward, or None.

    Raises:
      UserError: a process that ended could not be replaced.
    """
    # Short parts, so that a slow call holds up few others; but calls that share
    # a process make up for its start.
    most = 256 if self._workers[0].together else 32
    size = max(1, min(most, -(-len(requests) // self._config.workers)))
    parts = [requests[i : i + size] for i in range(0, len(requests), size)]
    answers = [
      a for part in self._threads.map(self._serve, parts) for a in part
    ]
    for request, (_, kind, detail) in zip(requests, answers, strict=True):
      if kind is not None:
        self.report(request, kind, detail)
    with self._lock:
      self._counts[self.returns.counted] += len(requests)
    return [value for value, _, _ in answers]

  def take_counts(self) -> dict[str, int]:
    """Calls made since the last time, and failed ones by kind."""
    with self._lock:
      counts, self._counts = self._counts, collections.Counter()
    return dict(counts)

  def close(self) -> None:
    """Ends all processes, at once."""
    self._closed = True
    for process in self._workers:
      process.kill()
    self._threads.shutdown(cancel_futures=True)
    for process in self._workers:  # One may have been replaced meanwhile.
      process.kill()
    atexit.unregister(self.close)

  def _serve(self, requests: Sequence[Request]) -> list[tuple]:
    """Has one process answer; it is replaced as often as it takes."""
    process = self._idle.get()
    answers: list[worker.Judged] = []
    lost = 0  # How often while it had the next request.
    try:
      while len(answers) < len(requests):
        if self._closed:
          raise UserError(
            f"the workers of {self.returns.noun} {self._name} were closed"
          )
        found, why = process.answers(requests[len(answers) :])
        answers += found
        lost = bool(why) + (0 if found else lost)
        if lost == 2:  # Once it may have been another one's doing.
          answers.append((self.returns.failed, worker.DIED, why))
          lost = 0
    finally:
      self._idle.put(process)
    return answers

  def report(self, request: Request, kind: str, detail: str) -> None:
    """Counts a call that came to nothing, and logs the first ones of a kind."""
    with self._lock:
      self._counts[kind] += 1
      self._shown[kind] += 1
      show = self._shown[kind] <= _SHOWN
    if show:
      prompt, response, _ = request
      logging.warning(
        "%s %s: %s (%s) on response %.200r to prompt %.200r",
        *(self.returns.noun, self._name, kind, one_line(detail) or "no detail"),
        *(response, prompt),
      )


class _Worker:
  """One process; at most one thread uses it at a time."""

  def __init__(self, name: str, config: PoolConfig, returns: worker.Returns):
    self._name, self._config, self._returns = name, config, returns
    self.together = False  # Whether calls share a process.
    self._start()

  def _start(self) -> None:
    """Starts the process; the thread that does must outlive it (`tie_to`)."""
    config = self._config
    ours, theirs = socket.socketpair()
    self._channel = Channel(ours)
    job = worker.Job(
      self._name, self._returns, config.seconds, config.memory_mib,
      config.shared, config.network, os.getpid(),
    )  # fmt: skip
    command = [sys.executable, "-m", worker.__name__]
    self._process = subprocess.Popen(
      [*command, str(theirs.fileno()), job.text()],
      env=isolation.environment(
        os.environ, supervisor.import_path(), config.environment
      ),
      pass_fds=[theirs.fileno()],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      # A group of its own: Ctrl-C is the parent's, children end with it.
      start_new_session=True,
    )
    theirs.close()

  def wait_until_ready(self) -> None:
    """Waits for the imports.

    Raises:
      UserError: they failed.
    """
    try:
      said = json.loads(self._channel.receive(_START_SECONDS))
      failed, refused, self.together = said
    except TimeoutError:
      failed = f"nothing was heard from it for {_START_SECONDS} s"
    except worker.NO_ANSWER as error:
      failed = f"its process ended ({type(error).__name__})"
    if not failed:
      _say_refused(refused)
      return
    self.kill()
    raise UserError(
      f"no worker could import {self._returns.noun} {self._name}: "
      + one_line(failed)
    )

  def answers(self, requests: Sequence[Request]) -> tuple[list, str]:
    """Answers to the first requests, all of them if all is well.

    Returns:
      The answers, and what became of the process if it was lost and replaced.

    Raises:
      UserError: it could not be replaced.
    """
    found: list[worker.Judged] = []
    # Nobody but the two knows it: an answer to another message has another.
    number = secrets.token_hex(8)
    patience = self._config.seconds + _PATIENCE
    try:
      message = json.dumps([number, requests]).encode()
      self._channel.send(message, patience)
      while len(found) < len(requests):
        answered, more = worker.parsed(self._channel.receive(patience))
        if answered != number:
          raise ValueError("an answer to another question")
        found += [worker.checked(answer, self._returns) for answer in more]
    except worker.NO_ANSWER as error:
      self.kill()
      self._start()
      self.wait_until_ready()
      return found, f"{type(error).__name__}: {error}"
    return found, ""

  def kill(self) -> None:
    """Ends the process and all that it started."""
    if self._process is None:
      return
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()
    self._process = None  # Its number may soon be another one's.
    self._channel.close()


@functools.cache
def _say_refused(reason: str) -> None:
  """Says once what a worker's function is not kept from."""
  if reason:
    logging.warning(
      "functions on the host are not kept from the network and from other "
      "processes: the system gives no namespaces (%s)",
      reason,
    )


@functools.cache
def shared(
  name: str, config: PoolConfig, returns: worker.Returns = worker.UNIT
) -> Pool:
  """The process-wide pool of a function, started at its first use."""
  pool = Pool(name, config, returns)
  _SHARED.append(pool)
  return pool


def grade_distinct(
  workers: Pool,
  keys: Sequence[Hashable | None],
  request: Callable[[Any], Request],
  otherwise: float,
) -> np.ndarray:
  """Rewards, float32, of which those with the same key are asked for once.

  Args:
    workers: what grades.
    keys: what rows are about; None: nothing is asked.
    request: of a key.
    otherwise: the reward where nothing is asked.
  """
  distinct = dict.fromkeys(key for key in keys if key is not None)
  graded = workers.grade([request(key) for key in distinct])
  reward_of = dict(zip(distinct, graded, strict=True))
  return np.array([reward_of.get(key, otherwise) for key in keys], np.float32)


_SHARED: list[Pool] = []


def take_counts() -> dict[str, dict[str, int]]:
  """Counts of all shared pools since the last time, by what they serve.

  Returns:
    `host_rewards` and `host_tools`, those of which there were calls.
  """
  total: dict[str, collections.Counter] = {}
  for pool in _SHARED:
    if counts := pool.take_counts():
      name = f"host_{pool.returns.noun}s"
      total.setdefault(name, collections.Counter()).update(counts)
  return {name: dict(counts) for name, counts in total.items()}
