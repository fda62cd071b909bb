"""How many calls of a trivial reward function the workers answer a second.

Of one that is seen to leave nothing behind, so that calls share a process, and
of one that does the same but is not, so that each call has its own. Every
reward is checked. Whatever else runs on the machine counts.

Command: python -m experiments.benchmarks.graded_calls
"""

import json
import os
import time

from absl import flags

from tsd_jax.base import config as config_lib
from tsd_jax.rewards.pool import Pool, PoolConfig

_SEEN: list[str] = []


def shared(prompt, response, example):
  """Calls of this share a process."""
  del prompt
  return float(response == example["answer"])


def alone(prompt, response, example):
  """Remembers, if it could: each call has a process of its own."""
  _SEEN.append(prompt)
  return float(response == example["answer"]) if len(_SEEN) == 1 else 0.0


def measure(fn, calls: int, repeats: int, workers: int) -> dict:
  """Calls a second of the best repeat.

  Args:
    fn: the function.
    calls: how many a repeat makes.
    repeats: how many there are.
    workers: processes that answer.

  Raises:
    AssertionError: a reward is wrong.
  """
  pool = Pool(f"experiments.benchmarks.graded_calls.{fn.__name__}",
              PoolConfig(workers=workers))  # fmt: skip
  requests = [
    ("What is it?", f"{i % 7} and some more words", {"answer": "3" * (i % 2)})
    for i in range(calls // 2)
  ]
  requests += [("p", "yes", {"answer": "yes"})] * (calls - len(requests))
  seconds = []
  for _ in range(repeats + 1):  # The first one warms up.
    start = time.perf_counter()
    rewards = pool.grade(requests)
    seconds.append(time.perf_counter() - start)
    assert rewards.sum() == calls - calls // 2
  assert set(pool.take_counts()) == {"graded"}
  pool.close()
  return {"calls": calls, "calls_per_second": calls / min(seconds[1:])}


def main(overrides):
  """Prints JSON."""
  del overrides
  result = {
    fn.__name__: measure(fn, calls, _REPEATS.value, _WORKERS.value)
    for fn, calls in ((shared, _CALLS.value), (alone, _CALLS.value // 20))
  }
  load, *_ = os.getloadavg()
  print(json.dumps({"load": load, "workers": _WORKERS.value, **result}))


if __name__ == "__main__":  # Workers import this module: no flags for them.
  _CALLS = flags.DEFINE_integer("calls", 20_000, "Of the quick function.", 20)
  _REPEATS = flags.DEFINE_integer("repeats", 5, "The best one counts.", 1)
  _WORKERS = flags.DEFINE_integer("workers", 2, "Processes that answer.", 1)
  config_lib.run(main)
