"""Two processes of four devices train as one process of eight."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests import small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import UserError
from tsd_jax.parallel import processes
from tsd_jax.run import directory as directory

ROOT = pathlib.Path(__file__).resolve().parent.parent
# GRPO has no search to compile; its rollouts and update go the same way.
FLAGS = [
  "--config=tests/small_experiment.py", "--config.algorithm=grpo",
  "--config.mesh.data=4", "--config.mesh.tensor=2",
  "--config.optimizer.eps=1e-2", "--config.eval.every=0",
  "--config.eval.modes=greedy",
]  # fmt: skip


def start(workdir, iterations, devices, *flags, **variables):
  line = [
    sys.executable, "-m", "launch.train", f"--workdir={workdir}", *FLAGS,
    f"--config.iterations={iterations}", *flags,
  ]  # fmt: skip
  count = f"--xla_force_host_platform_device_count={devices}"
  environment = os.environ | {"XLA_FLAGS": count} | variables
  return subprocess.Popen(
    line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
  )


def start_some(workdir, iterations, indices, *flags):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  return [
    start(
      workdir, iterations, 4, "--distributed", "--heartbeat_seconds=100",
      *flags,
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES="2",
      JAX_PROCESS_ID=str(i),
    )
    for i in indices
  ]  # fmt: skip


def start_two(workdir, iterations):
  return start_some(workdir, iterations, (0, 1))


def finish(processes):
  for process in processes:
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr[-3000:]


def rows(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume_as_either(tmp_path):
  finish([start(tmp_path / "one", 4, 8)])
  # Two iterations by two processes, then two more by two new ones.
  finish(start_two(tmp_path / "two", 2))
  finish(start_two(tmp_path / "two", 4))
  # The second one died after the first had finished: it is done as well.
  finish(start_some(tmp_path / "two", 4, (1,)))
  one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
  assert [row["step"] for row in two] == [0, 1, 2, 3, 4]
  for a, b in zip(one, two, strict=True):
    assert a["ledger"] == b["ledger"]
    for name, value in a.items():
      if isinstance(value, float) and name != "seconds":
        # Sums over processes run in another order.
        np.testing.assert_allclose(value, b[name], rtol=1e-3, atol=1e-5)
  assert one[-1]["eval"] == two[-1]["eval"]
  assert (tmp_path / "two" / "report.html").is_file()


def test_what_the_leader_refuses_ends_all_at_once(tmp_path):
  """With the code that no supervisor starts again."""
  overrides = dict(flag[9:].split("=") for flag in FLAGS if "config." in flag)
  config = config_lib.override(small_experiment.get_config(), overrides)
  directory.prepare(dataclasses.replace(config, seed=1), tmp_path)
  for process in start_some(tmp_path, 1, (0, 1)):
    _, stderr = process.communicate(timeout=120)  # JAX's own end waits longer.
    assert process.returncode == 2, stderr[-3000:]
    assert "other settings" in stderr or "its log says why" in stderr


def test_a_finished_run_waits_for_nobody(tmp_path):
  overrides = dict(flag[9:].split("=") for flag in FLAGS if "config." in flag)
  config = config_lib.override(small_experiment.get_config(), overrides)
  directory.prepare(config, tmp_path)
  row = {
    "step": config.iterations, "seconds": 1.0, "ledger": {"total": 1},
    "eval": {"greedy": {"accuracy": 0.5, "stderr": 0.1}},
  }  # fmt: skip
  (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
  (tmp_path / "report.html").touch()  # Of a run that goes on.
  assert directory.results(config, tmp_path) is None
  (tmp_path / "samples.json").touch()
  assert directory.results(config, tmp_path) == row["eval"]
  # Another run's folder is refused later, by the process that writes there.
  other = dataclasses.replace(config, seed=1)
  assert directory.results(other, tmp_path) is None

  # One iteration more, but nobody comes.
  (process,) = start_some(
    tmp_path, config.iterations + 1, (1,), "--join_seconds=2"
  )
  _, stderr = process.communicate(timeout=120)
  assert process.returncode == -signal.SIGABRT
  assert "waiting for the other processes, at most 2 s" in stderr


def test_numbers_of_processes_are_numbers(monkeypatch):
  monkeypatch.setenv("JAX_PROCESS_ID", "abc")
  with pytest.raises(UserError, match="JAX_PROCESS_ID='abc' must be a number"):
    processes.initialize(20, 2)


def test_who_the_others_are_must_be_known(tmp_path):
  process = start(tmp_path, 1, 1, "--distributed")
  _, stderr = process.communicate(timeout=120)
  assert process.returncode == 2
  last = stderr.strip().splitlines()[-1]
  assert last.startswith("error: --distributed") and "JAX_PROCESS_ID" in last
