"""Two processes train, are killed in turn, and end where they would have.

Each stands for a host: a supervisor and the run that it restarts. First the
worker's host is lost and replaced, then the coordinator dies, then both in the
middle of a checkpoint.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.learning import iteration
from tsd_jax.run.checkpoint import Checkpointer
from tsd_jax.run.experiment import initial_params

ROOT = pathlib.Path(__file__).resolve().parent.parent
ITERATIONS, HEARTBEAT = 20, 10
OVERRIDES = {
  "mesh.data": "2",
  "iterations": str(ITERATIONS),
  "search.num_simulations": "4",
  "eval.every": "0",
  "eval.modes": "greedy",
}
MARK = "TSD_JAX_CHAOS"  # In the environment of all that this test starts.


def start(workdir, address, index, restarts):
  line = [
    sys.executable, "-m", "launch.train", f"--workdir={workdir}",
    "--config=tests/small_experiment.py", "--distributed",
    f"--heartbeat_seconds={HEARTBEAT}", f"--max_restarts={restarts}",
    *(f"--config.{name}={value}" for name, value in OVERRIDES.items()),
  ]  # fmt: skip
  environment = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": str(index),
    MARK: str(workdir),
  }
  with open(f"{workdir}_{index}.log", "a") as log:
    return subprocess.Popen(line, cwd=ROOT, env=environment, stderr=log)


def marked(mark):
  """Processes that carry the mark, dead ones left out."""
  found = []
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    # It may have ended meanwhile, or be another user's.
    with contextlib.suppress(OSError):
      if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
        found.append(int(folder.name))
  return found


@contextlib.contextmanager
def two_hosts(workdir, restarts):
  """Their supervisors, and how to start one; no process stays behind."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  begin = functools.partial(start, workdir, address, restarts=restarts)
  try:
    yield [begin(i) for i in range(2)], begin
  finally:
    # A supervisor that is not dead yet may start another run.
    while left := marked(str(workdir)):
      for pid in left:
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, signal.SIGKILL)
      time.sleep(0.05)


def until(condition, seconds=240):
  """Waits for what a condition returns, and returns it."""
  deadline = time.monotonic() + seconds
  while not (found := condition()):
    assert time.monotonic() < deadline, condition
    time.sleep(0.002)
  return found


def runs_of(supervisor):
  """The run that a supervisor looks after: none while it pauses."""
  file = f"/proc/{supervisor.pid}/task/{supervisor.pid}/children"
  return [int(pid) for pid in pathlib.Path(file).read_text().split()]


def alive(pid):
  """Whether a process runs; a dead one may wait for its parent."""
  try:
    state = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return False
  return state.rpartition(")")[2].split()[0] not in "ZX"


def saved(workdir):
  """The newest whole checkpoint's step."""
  folder = workdir / "checkpoints"
  return max((int(f.name) for f in folder.glob("*") if f.name.isdigit()),
             default=0)  # fmt: skip


def saving(workdir):
  return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def kill_one(hosts, index, workdir, *, whole_host=False):
  """Kills a run after its next checkpoint; says how long the other lived."""
  before = saved(workdir)
  until(lambda: saved(workdir) > before)
  (victim,), (other,) = runs_of(hosts[index]), runs_of(hosts[1 - index])
  if whole_host:
    hosts[index].kill()  # The supervisor, with which its run ends.
    hosts[index].wait()
    until(lambda: not alive(victim))
  else:
    os.kill(victim, signal.SIGKILL)
  killed = time.monotonic()
  until(lambda: not alive(other))
  return time.monotonic() - killed


def kill_both_in_a_save(hosts, workdir):
  """Stops both while a checkpoint is half written, and kills them there."""
  before = saved(workdir)
  until(lambda: saved(workdir) > before)
  pids = [pid for host in hosts for pid in runs_of(host)]
  while True:
    until(lambda: saving(workdir))
    for pid in pids:
      os.kill(pid, signal.SIGSTOP)
    if half := saving(workdir):  # Else it was done before they stopped.
      break
    for pid in pids:
      os.kill(pid, signal.SIGCONT)
  for pid in pids:
    os.kill(pid, signal.SIGKILL)
  until(lambda: not any(map(alive, pids)))
  assert saving(workdir) == half
  return saved(workdir)


def rows(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if k != "seconds"}
          for line in lines]  # fmt: skip


def state(workdir):
  """The last checkpoint's arrays, and what stands beside them."""
  config = config_lib.override(small_experiment.get_config(), OVERRIDES)
  _, params = initial_params(config)
  like = iteration.init_state(config.learner_config(), params)
  checkpointer = Checkpointer(workdir, read_only=True)
  assert checkpointer.steps()[0] == ITERATIONS
  arrays, record = checkpointer.restore(like._asdict())
  checkpointer.close()
  del record["seconds"]
  return arrays, record


def finish(hosts):
  for host in hosts:
    assert host.wait(timeout=240) == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_processes_end_where_undisturbed_ones_do(tmp_path):
  calm, stormy = tmp_path / "calm", tmp_path / "stormy"
  with two_hosts(calm, 0) as (hosts, _):
    finish(hosts)
  with two_hosts(stormy, 10) as (hosts, begin):
    lived = [kill_one(hosts, 1, stormy, whole_host=True)]
    hosts[1] = begin(1)
    lived.append(kill_one(hosts, 0, stormy))
    last = kill_both_in_a_save(hosts, stormy)
    assert last < ITERATIONS
    finish(hosts)
  # A killed process ends the other in seconds, not after minutes.
  print("the other lived for", lived)
  assert max(lived) < 3 * HEARTBEAT, lived

  for index, deaths in enumerate((3, 2)):  # A new host knows of two.
    log = pathlib.Path(f"{stormy}_{index}.log").read_text()
    assert log.count("the run died with exit code") >= deaths
    resumed = re.findall(r"resuming .* at iteration (\d+)", log)
    assert len(resumed) >= 3 and int(resumed[-1]) == last

  assert rows(stormy) == rows(calm)
  assert [row["step"] for row in rows(calm)] == list(range(ITERATIONS + 1))
  (a, record_a), (b, record_b) = state(calm), state(stormy)
  assert record_a == record_b
  jax.tree.map(np.testing.assert_array_equal, a, b)
