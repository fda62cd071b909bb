"""Functions that were taken over: no other reward is wrong, nothing hangs."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import misbehaving
from tests.pool_test import ROOT, alive
from tsd_jax.rewards import isolation, pool
from tsd_jax.rewards.pool import Pool, PoolConfig

# What each earns itself, where its own process is all that it reaches: nothing,
# or what it says. None where that depends on the system.
TAKEN_OVER = {
  "fork": 0.25, "dumps": 1.0, "digits": 0.0, "number": 0.0, "brackets": 0.0,
  "float": 1.0, "code": 0.25, "write": 0.0, "flood": 0.0, "half": 0.0,
  "stop": 0.0, "close": 0.0, "leave": 0.25, "stop the parent": None,
  "kill the parent": None,
}  # fmt: skip
STANDS_STILL = {"half", "stop"}
NAMESPACES = pytest.mark.skipif(
  bool(isolation.refusal()), reason="the system gives no namespaces"
)


def name_of(fn) -> str:
  return f"{fn.__module__}.{fn.__name__}"


NAME = name_of(misbehaving.take_over)


@pytest.fixture(scope="module")
def workers():
  config = PoolConfig(workers=2, seconds=0.5, memory_mib=1024)
  running = Pool(NAME, config)
  yield running
  running.close()


def check(workers, asked: list[str], worth: list[float]) -> None:
  """Every other sample has its own reward, every hostile one what it earns."""
  requests = [
    ("p", how, {"worth": 0.25 if how else w})
    for how, w in zip(asked, worth, strict=True)
  ]
  got = workers.grade(requests)
  for how, mine, reward in zip(asked, worth, got, strict=True):
    expected = TAKEN_OVER[how] if how else np.float32(mine)
    assert expected is None or reward == expected, how


@pytest.mark.parametrize("how", TAKEN_OVER)
def test_whoever_takes_a_function_over_earns_only_its_own_reward(
  workers, how, monkeypatch
):
  monkeypatch.setattr(pool, "_PATIENCE", 1.0)
  started = time.monotonic()
  worth = [i / 100 for i in range(1, 31)]
  check(workers, ["", how, ""] * 10, worth)
  check(workers, [""] * 30, worth)  # Nor do those of the next call suffer.
  assert time.monotonic() - started < (15 if how in STANDS_STILL else 10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_calls_beside_hostile_ones_keep_their_rewards(
  workers, seed, record_property
):
  """Longer: TSD_JAX_HOSTILE_SECONDS=3600."""
  rng = np.random.default_rng(seed)
  end = time.monotonic() + float(os.environ.get("TSD_JAX_HOSTILE_SECONDS", 30))
  graded = 0
  while time.monotonic() < end:
    asked = rng.choice([*TAKEN_OVER, ""], 64, p=[0.01] * 15 + [0.85])
    check(workers, list(asked), list(rng.random(64)))
    graded += 64
  record_property("graded", graded)
  assert graded >= 300


def processes() -> set[int]:
  """Those of all workers of the function."""
  found = set()
  for pid in filter(str.isdigit, os.listdir("/proc")):
    with contextlib.suppress(OSError):
      said = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
      if NAME.encode() in said and alive(int(pid)):
        found.add(int(pid))
  return found


def test_nobody_that_a_call_left_behind_is_there_after_it(workers):
  before = processes()
  workers.grade([("p", "leave", {"worth": 0.0})] * 10)
  assert processes() == before


WITHOUT_NAMESPACES = """
from tests.hostile_test import NAME, processes
from tsd_jax.rewards.pool import Pool, PoolConfig

if __name__ == "__main__":
  pools = [Pool(NAME, PoolConfig(workers=1)) for _ in range(2)]
  before = processes()
  for pool in pools:
    print(pool.grade([("p", how, {"worth": 0.5}) for how in ("", "leave", "")]))
  print(processes() == before)
"""


@NAMESPACES
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs util-linux")
def test_without_namespaces_a_run_says_so_once_and_ends_what_a_call_leaves():
  refuse = 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"'
  command = ["unshare", "-Ur", "sh", "-c", refuse, "sh"]
  done = subprocess.run(
    [*command, sys.executable, "-c", WITHOUT_NAMESPACES],
    cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
  )  # fmt: skip
  assert done.stdout == "[0.5 0.5 0.5]\n[0.5 0.5 0.5]\nTrue\n"
  assert done.stderr.count("not kept from the network") == 1


@pytest.fixture(scope="module")
def reach():
  running = Pool(name_of(misbehaving.reach), PoolConfig(seconds=30.0))
  yield running
  running.close()


def ask(running, *request) -> tuple[float, dict]:
  (reward,) = running.grade([("p", *request)])
  counts = running.take_counts()
  del counts["graded"]
  return float(reward), counts


def test_a_function_sees_what_python_needs_and_no_tokens(monkeypatch):
  monkeypatch.setenv("HF_TOKEN", "secret")
  monkeypatch.setenv("JUDGE_KEY", "key")
  name = name_of(misbehaving.reach)
  for config, names, expected in (
    (PoolConfig(workers=1), ["HF_TOKEN", "JUDGE_KEY"], 0.0),
    (PoolConfig(workers=1), ["PATH", "PYTHONPATH"], 1.0),
    (PoolConfig(workers=1, environment=("JUDGE_KEY",)), ["JUDGE_KEY"], 1.0),
  ):
    running = Pool(name, config)
    assert ask(running, "variables", names) == (expected, {})
    running.close()


def test_files_have_their_limits(reach):
  assert ask(reach, "files", 20) == (0.0, {"out_of_range": 1})  # 20 of them.
  assert ask(reach, "files", 1000) == (0.0, {"raised": 1})
  assert ask(reach, "size", 1000) == (1.0, {})
  assert ask(reach, "size", 2**33) == (0.0, {"raised": 1})


@pytest.mark.slow
@NAMESPACES
def test_a_function_has_few_processes_again_and_again(reach):
  for _ in range(2):
    share, faults = ask(reach, "processes", 1000)
    assert 0 < share < 0.5 and faults == {}


@NAMESPACES
def test_the_trainer_is_out_of_reach(reach):
  for what in ("memory", "signal"):
    assert ask(reach, what, os.getpid()) == (0.0, {"raised": 1})
  assert ask(reach, "privileges", None) == (0.0, {})


@NAMESPACES
def test_the_network_is_closed_unless_it_is_asked_for(reach):
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    assert ask(reach, "network", port) == (0.0, {"raised": 1})
    name = name_of(misbehaving.reach)
    running = Pool(name, PoolConfig(workers=1, network=True))
    assert ask(running, "network", port) == (1.0, {})
    running.close()
