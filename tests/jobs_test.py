"""Several trainings at a time: what they leave, and what goes wrong."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.small_experiment import get_config
from tsd_jax.base.errors import UserError
from tsd_jax.comparison import jobs
from tsd_jax.run import directory

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONG = """
import sys, pathlib, dataclasses
from tests.jobs_test import run
from tsd_jax.base import config
from tsd_jax.comparison import jobs
long = [dataclasses.replace(run(s), iterations=100_000) for s in (0, 1, 2)]
groups = [{pathlib.Path(sys.argv[1]) / str(r.seed): r} for r in long]
sys.argv = sys.argv[:1]
config.run(lambda _: jobs.train_all(groups, 2))
"""


def run(seed):
  return dataclasses.replace(
    get_config(), iterations=2, checkpoint_every=1_000, seed=seed
  )


@pytest.mark.skipif(
  not hasattr(os, "sched_setaffinity"), reason="binds no process to cores"
)
@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_processes_share_the_cores(count):
  mine = sorted(os.sched_getaffinity(0))
  found = jobs.shares(count)
  assert len(found) == count
  used = [core for cores in found for core in cores]
  assert set(used) <= set(mine)
  if count <= len(mine):  # No core has two, and none has many more.
    assert len(used) == len(set(used)) == len(mine) // count * count
  else:
    assert {len(cores) for cores in found} == {1}
    assert max(map(used.count, mine)) - min(map(used.count, mine)) <= 1


@pytest.mark.slow
def test_runs_end_and_failures_are_told(tmp_path, monkeypatch, capsys):
  """A folder of another run fails; the other runs are made all the same."""
  todo = {tmp_path / "a" / str(seed): run(seed) for seed in (0, 1, 2)}
  taken = tmp_path / "a" / "1"
  directory.prepare(run(7), taken)
  groups = [{folder: config} for folder, config in todo.items()]
  with pytest.raises(UserError, match="1 of 3 runs failed") as failure:
    jobs.train_all(groups, 2)
  assert str(taken) in str(failure.value)
  assert "seed: saved 7, now 1" in str(failure.value)
  assert "3/3" in capsys.readouterr().out
  for folder, config in todo.items():
    done = directory.results(config, folder)
    assert (done is None) == (folder == taken)
  log = (tmp_path / "a" / "0.log").read_text()
  assert "2/2" in log

  # What is finished starts no process.
  def never(*_, **__):
    raise AssertionError("a process was started")

  monkeypatch.setattr(jobs.subprocess, "Popen", never)
  jobs.train_all([groups[0], groups[2]], 2)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_to_the_parent_alone_saves_all(tmp_path, number, code):
  process = subprocess.Popen(
    [sys.executable, "-c", LONG, tmp_path],
    cwd=ROOT, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  rows = [tmp_path / seed / "metrics.jsonl" for seed in "01"]
  deadline = time.monotonic() + 300
  while not all(r.exists() and r.read_text().count("\n") > 2 for r in rows):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.2)
  process.send_signal(number)
  assert "save a checkpoint" in process.communicate(timeout=120)[0]
  assert process.returncode == code
  for file in rows:  # As far as the rows go, and the third was never begun.
    last = json.loads(file.read_text().splitlines()[-1])["step"]
    assert (file.parent / "checkpoints" / str(last)).is_dir()
  assert not (tmp_path / "2").exists()
