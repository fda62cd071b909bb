"""Reward functions in workers: what goes wrong costs its own sample only."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsd_jax.base.errors import UserError
from tsd_jax.rewards import callback, worker
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


def test_the_log_shows_the_text_that_did_it_three_times(caplog):
  fresh = Pool(NAME, PoolConfig(workers=1))
  fresh.grade([("a prompt", "nan", None)] * 5)
  fresh.close()
  words = "not_finite (returned nan) on response 'nan' to prompt 'a prompt'"
  assert caplog.text.count(words) == 3


def pids(running) -> set[int]:
  return {process._process.pid for process in running._workers}


def test_workers_stay_and_a_hung_one_is_replaced(workers):
  before = pids(workers)
  got = workers.grade([("p", "pid", None)] * 40)
  assert {round(x * 2**22) for x in map(float, got)} <= before
  assert pids(workers) == before
  workers.grade([("p", "hang", None)])
  after = pids(workers)
  assert len(after) == 2 and len(before & after) == 1
  for pid in before - after:
    with pytest.raises(ProcessLookupError):
      os.kill(pid, 0)


def test_a_worker_that_was_lost_while_idle_costs_nothing(workers):
  for pid in pids(workers):
    os.kill(pid, signal.SIGKILL)
  time.sleep(0.1)
  got = workers.grade([("p", "", {"worth": 0.5})] * 4)
  np.testing.assert_array_equal(got, [0.5] * 4)
  assert workers.take_counts() == {"graded": 4}


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
  """Not one that hangs either: it has an alarm."""
  code = f"""
import time
from tsd_jax.rewards import pool
if __name__ == "__main__":
  p = pool.shared({NAME!r}, pool.PoolConfig(workers=2, seconds=1.0))
  print(*(w._process.pid for w in p._workers), flush=True)
  if {number is not None}:
    p._workers[0]._pipe.send_bytes(b'[["p", "hang", null]]')
    time.sleep(60)
"""
  process = subprocess.Popen(
    [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
  children = [int(pid) for pid in process.stdout.readline().split()]
  assert len(children) == 2
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


def total(example_Q, response_QT):
  """A host reward with a closed form."""
  return (example_Q + response_QT[:, 0]) / 100


def test_a_callback_sees_the_rows_under_jit_vmap_and_loops():
  rng = np.random.default_rng(0)
  example = rng.integers(0, 20, (3, 4))
  response = rng.integers(0, 9, (3, 4, 5))
  expected = ((example + response[..., 0]) / 100).astype(np.float32)

  def graded(example, response):
    return callback.graded(total, example, response)

  for fn in (
    graded,
    jax.vmap(graded),
    jax.vmap(jax.vmap(graded)),
    lambda e, r: jax.lax.map(lambda er: graded(*er), (e, r)),
  ):
    got = jax.jit(fn)(example, response)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, expected)
  callback.raise_errors()


@pytest.mark.parametrize(
  ("grade", "words"),
  [
    (lambda p, r: np.ones(3), r"shape \[3\] for 2 responses"),
    (lambda p, r: np.array([0.5, np.nan]), r"outside \[0, 1\]"),
    (lambda p, r: 1 / 0, "ZeroDivisionError"),
  ],
)
def test_a_broken_callback_is_told_to_the_host(grade, words):
  tokens = jnp.zeros((2, 3), jnp.int32)
  got = jax.jit(lambda t: callback.graded(grade, t[:, 0], t))(tokens)
  np.testing.assert_array_equal(got, np.zeros(2))
  with pytest.raises(UserError, match=words):
    callback.raise_errors()
  callback.raise_errors()  # It is told once.


def test_large_batches_do_not_block_the_program():
  """On one thread, a callback must not wait for what runs it."""
  tokens = jnp.ones((20_000, 64), jnp.int32)

  @jax.jit
  def run(tokens):
    def step(_, total):
      reward = callback.graded(
        lambda e, r: np.full(len(r), 0.5),
        tokens[:, 0],
        tokens + total.astype(int),
      )
      return total + jnp.sum(reward) / len(tokens)

    return jax.lax.fori_loop(0, 3, step, jnp.float32(0))

  assert float(run(tokens)) == 1.5
