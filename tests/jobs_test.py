"""Several trainings at a time: what they leave, and what goes wrong."""

import dataclasses
import os

import pytest

from tests.small_experiment import get_config
from tsd_jax import jobs, workdir
from tsd_jax.config import UserError


def run(seed):
  return dataclasses.replace(get_config(), iterations=2, seed=seed)


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
  workdir.prepare(run(7), taken)
  groups = [{folder: config} for folder, config in todo.items()]
  with pytest.raises(UserError, match="1 of 3 runs failed") as failure:
    jobs.train_all(groups, 2)
  assert str(taken) in str(failure.value)
  assert "seed: saved 7, now 1" in str(failure.value)
  assert "3/3" in capsys.readouterr().out
  for folder, config in todo.items():
    done = workdir.results(config, folder)
    assert (done is None) == (folder == taken)
  log = (tmp_path / "a" / "0.log").read_text()
  assert "2/2" in log

  # What is finished starts no process.
  def never(*_, **__):
    raise AssertionError("a process was started")

  monkeypatch.setattr(jobs.subprocess, "run", never)
  jobs.train_all([groups[0], groups[2]], 2)
