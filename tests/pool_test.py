"""Reward functions in workers: what goes wrong costs its own sample only."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tsd_jax.base.errors import UserError
from tsd_jax.rewards import pool, worker
from tsd_jax.rewards.pool import Pool, PoolConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIMITS = PoolConfig(workers=2, seconds=1.0, memory_mib=1024)


FAULTS = {
  "raise": "raised", "exit": "raised", "hang": "timed_out",
  "sleep": "timed_out", "power": "timed_out", "memory": "raised",
  "die": "died", "crash": "died", "nan": "not_finite", "inf": "not_finite",
  "-inf": "not_finite", "text": "wrong_type", "none": "wrong_type",
  "huge": "raised", "negative": "out_of_range", "two": "out_of_range",
}  # fmt: skip
REWARDS = {"print": 0.5, "true": 1.0, "numpy": 0.25}
NAME = "tests.misbehaving.misbehave"


@pytest.fixture(scope="module")
def workers():
  running = Pool(NAME, LIMITS)
  yield running
  running.close()


@pytest.fixture(autouse=True)
def _no_counts_are_left(request):
  yield
  if "workers" in request.fixturenames:
    request.getfixturevalue("workers").take_counts()


def test_a_fault_costs_its_own_sample_and_is_counted(workers):
  asked = [*FAULTS, *REWARDS]
  order = np.random.default_rng(0).permutation(3 * len(asked))
  requests, expected = [], []
  for i in order:  # Two good ones beside each.
    name = asked[i] if i < len(asked) else "good"
    requests.append(("p", name, {"worth": i / 1000}))
    expected.append(
      0.0 if name in FAULTS else REWARDS.get(name, np.float32(i / 1000))
    )
  got = workers.grade(requests)
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, np.array(expected, np.float32))
  counts = workers.take_counts()
  assert counts.pop("graded") == len(requests)
  assert counts == {k: list(FAULTS.values()).count(k) for k in worker.KINDS}
  assert workers.take_counts() == {}


def test_slow_calls_that_share_a_process_are_within_their_limit(monkeypatch):
  """Together they are too slow, and the first alone takes as long again."""
  monkeypatch.setattr(pool, "_PATIENCE", 0.5)
  slow = PoolConfig(workers=1, seconds=2.0, shared=True)
  running = Pool("tests.misbehaving.sleepy", slow)
  got = running.grade([("p", "1.4", None), ("p", "1.3", None)])
  running.close()
  np.testing.assert_array_equal(got, [1.0, 1.0])
  assert set(running.take_counts()) == {"graded"}


def test_the_log_shows_the_text_that_did_it_three_times(caplog):
  fresh = Pool(NAME, PoolConfig(workers=1))
  fresh.grade([("a prompt", "nan", None)] * 5)
  fresh.close()
  words = "not_finite (returned nan) on response 'nan' to prompt 'a prompt'"
  assert caplog.text.count(words) == 3


def test_a_range_is_the_functions_own():
  ranged = Pool(NAME, PoolConfig(workers=1), worker.Number(-1.0, 2.0))
  asked = ["two", "negative", "nan", "true", "none"]
  got = ranged.grade([("p", name, None) for name in asked])
  np.testing.assert_array_equal(got, [2.0, -0.25, -1.0, 1.0, -1.0])
  got = ranged.grade([("p", "", {"worth": x}) for x in (-1.01, -1, 2, 2.01)])
  np.testing.assert_array_equal(got, [-1, -1, 2, -1])
  counts = ranged.take_counts()
  ranged.close()
  assert counts == {
    "graded": 9, "not_finite": 1, "wrong_type": 1, "out_of_range": 2
  }  # fmt: skip


def pids(running) -> set[int]:
  return {process._process.pid for process in running._workers}


def test_workers_stay_whatever_becomes_of_a_call(workers):
  before = pids(workers)
  workers.grade([("p", how, None) for how in ("hang", "die", "crash", "exit")])
  got = workers.grade([("p", "", {"worth": 0.5})] * 40)
  np.testing.assert_array_equal(got, [0.5] * 40)
  assert pids(workers) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("characters", [1, 300_000])
def test_a_worker_that_is_lost_costs_no_call(number, characters, monkeypatch):
  """While it is idle, or has read half of what is asked."""
  monkeypatch.setattr(pool, "_PATIENCE", 2)
  one = Pool(NAME, PoolConfig(workers=1, seconds=0.5))
  (before,) = pids(one)
  os.kill(child_of(before), number)
  got = one.grade([("p", "a" * characters, {"worth": 0.5})] * 4)
  np.testing.assert_array_equal(got, [0.5] * 4)
  assert one.take_counts() == {"graded": 4}
  assert pids(one) != {before}
  one.close()


def parent_of(pid: str) -> int | None:
  try:
    text = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return None
  return int(text.rpartition(")")[2].split()[1])


def child_of(pid: int) -> int:
  """The worker proper, where it has namespaces; else the process itself."""
  everyone = filter(str.isdigit, os.listdir("/proc"))
  return next((int(p) for p in everyone if parent_of(p) == pid), pid)


def test_calls_of_a_worker_that_is_always_lost_fail(monkeypatch):
  """Each is asked twice: once it may have been another one's doing."""
  one = Pool(NAME, PoolConfig(workers=1))
  asked = []

  def lost(self, requests):
    asked.append(len(requests))
    return [], "EOFError: nobody is there"

  monkeypatch.setattr(pool._Worker, "answers", lost)
  np.testing.assert_array_equal(one.grade([("p", "", None)] * 2), [0, 0])
  assert one.take_counts() == {"graded": 2, "died": 2}
  assert asked == [2, 2, 1, 1]
  one.close()


def test_an_answer_to_another_question_is_none(workers, monkeypatch):
  worker_0 = workers._workers[0]
  monkeypatch.setattr(pool.secrets, "token_hex", lambda _: "old")
  message = json.dumps(["older", [["p", "", {"worth": 1.0}]]])
  worker_0._channel.send(message.encode(), 1.0)
  found, why = worker_0.answers([("p", "", {"worth": 0.5})])
  assert found == [] and "another question" in why


def test_what_an_exception_says_is_logged_on_one_line(caplog):
  fresh = Pool(NAME, PoolConfig(workers=1))
  fresh.grade([("p", "lines", None)])
  fresh.close()
  assert r"RuntimeError: one\ntwo \x1b[2J three" in caplog.text
  assert "\x1b" not in caplog.text


def counted(config, hangs=None) -> list[int]:
  running = Pool("tests.misbehaving.count", config)
  example = {"hangs": hangs}
  got = running.grade([("p", str(i), example) for i in range(8)])
  running.close()
  return [round(1000 * float(x)) for x in got]


def test_a_call_has_a_process_of_its_own_unless_they_are_said_to_share():
  alone = PoolConfig(workers=1)
  shared = dataclasses.replace(alone, shared=True)
  assert counted(alone) == [1] * 8
  assert counted(shared) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_of_calls_that_share_a_process_only_the_one_that_hangs_fails():
  shared = PoolConfig(workers=1, seconds=0.5, shared=True)
  assert counted(shared, hangs="3") == [1, 1, 1, 0, 1, 1, 1, 1]


def test_no_requests_are_no_rewards(workers):
  assert workers.grade([]).shape == (0,)


def test_threads_share_a_pool(workers):
  import concurrent.futures

  def ask(i):
    return workers.grade([("p", "", {"worth": i / 64})] * 50)

  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    for i, got in enumerate(threads.map(ask, range(8))):
      np.testing.assert_array_equal(got, np.full(50, i / 64, np.float32))


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("tests.misbehaving.missing", "AttributeError"),
    ("no_such_module.reward", "ModuleNotFoundError"),
    ("__main__.reward", "define it in a module"),
  ],
)
def test_a_function_that_workers_cannot_import_is_refused(name, words):
  with pytest.raises(UserError, match=words):
    Pool(name, PoolConfig(workers=1))


@pytest.mark.parametrize("field", ["workers", "seconds", "memory_mib"])
def test_impossible_limits_are_refused(field):
  with pytest.raises(ValueError, match=f"{field}=0 must be positive"):
    PoolConfig(**{field: 0})


def alive(pid: int) -> bool:
  """Whether a process runs; one that nobody waited for does not."""
  try:
    text = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except FileNotFoundError:
    return False
  return text.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [None, signal.SIGKILL])
def test_no_worker_outlives_its_parent(number):
  """Not one that hangs either."""
  code = f"""
import time
from tsd_jax.rewards import pool
if __name__ == "__main__":
  p = pool.shared({NAME!r}, pool.PoolConfig(workers=2, seconds=1.0))
  print(*(w._process.pid for w in p._workers), flush=True)
  if {number is not None}:
    p._workers[0]._channel.send(b'["", [["p", "hang", null]]]', 1.0)
    time.sleep(60)
"""
  process = subprocess.Popen(
    [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
  children = [int(pid) for pid in process.stdout.readline().split()]
  assert len(children) == 2
  children = [*children, *map(child_of, children)]
  if number is None:
    assert process.wait(timeout=60) == 0
  else:
    assert all(map(alive, children))
    process.send_signal(number)
    process.wait(timeout=60)
  process.stdout.close()
  deadline = time.monotonic() + 30
  while any(map(alive, children)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(alive, children))
