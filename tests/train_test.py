"""Whole runs as a user starts them: resume after kill -9, and bad input."""

import importlib.util
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.run import problems, trackers, train

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = "tests/small_experiment.py"


def command(workdir, *flags):
  return [
    sys.executable, "-m", "launch.train", f"--config={CONFIG}",
    f"--workdir={workdir}", *flags,
  ]  # fmt: skip


def run(workdir, *flags, **environment):
  return subprocess.run(
    command(workdir, *flags), cwd=ROOT, capture_output=True, text=True,
    timeout=300, check=False, env=os.environ | environment,
  )  # fmt: skip


def rows(workdir):
  """Metrics rows without what a clock decides."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  found = [json.loads(line) for line in lines]
  for row in found:
    row.pop("seconds", None)
  return found


# The whole run is logged too, where that can be.
LOG = "tensorboard" * (importlib.util.find_spec("tensorboardX") is not None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted run."""
  workdir = tmp_path_factory.mktemp("whole")
  done = run(workdir, f"--config.log={LOG}")
  assert done.returncode == 0, done.stderr
  return workdir


def test_a_run_writes_every_iteration(whole):
  found = rows(whole)
  assert [row["step"] for row in found] == list(range(7))
  assert all(r["ledger"]["total"] > 0 for r in found[1:])
  totals = [row["ledger"]["total"] for row in found]
  assert totals == sorted(totals) and len(set(totals)) == 7
  assert set(found[-1]["eval"]) == {"greedy", "mean@2"}


def test_a_run_keeps_how_far_each_problem_is_solved(whole):
  found = problems.read(whole)
  evaluated = {row["step"]: row["eval"] for row in rows(whole) if "eval" in row}
  assert list(found.solved) == [0, 6] and len(found.prompts) == 512
  for step, solved in found.solved.items():
    for mode, solved_Q in solved.items():
      expected = evaluated[step][mode]["accuracy"]
      assert solved_Q.mean() == pytest.approx(expected, abs=1e-4)


def test_services_get_every_row(whole):
  pytest.importorskip("tensorboard", reason="needs the extra: test")
  from tensorboard.backend.event_processing import event_accumulator

  read = event_accumulator.EventAccumulator(str(whole / LOG)).Reload()
  for name in ("learning_rate", "loss", "ledger/total"):
    expected = [
      (row.step, pytest.approx(row.values[name], rel=1e-6))
      for row in map(trackers.flat, rows(whole))
      if name in row.values
    ]
    assert [(e.step, e.value) for e in read.Scalars(name)] == expected
  assert "samples/text_summary" in read.Tags()["tensors"]


def wait_for(process, folder):
  """Waits until a running process has made a folder."""
  deadline = time.monotonic() + 240
  while not folder.is_dir() and time.monotonic() < deadline:
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.005)


def start_and_stop(workdir, number):
  """Starts a run and sends it a signal after its first checkpoint."""
  process = subprocess.Popen(
    command(workdir), cwd=ROOT, stderr=subprocess.PIPE, text=True
  )
  wait_for(process, workdir / "checkpoints" / "2")
  process.send_signal(number)
  _, stderr = process.communicate(timeout=120)
  return process.returncode, stderr


@pytest.mark.parametrize(
  "number",
  [
    signal.SIGKILL,
    pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
  ],
)
def test_a_stopped_run_resumes_bit_for_bit(whole, tmp_path, number):
  code, stderr = start_and_stop(tmp_path, number)
  assert code == (-9 if number == signal.SIGKILL else 128 + number)
  assert "Traceback" not in stderr
  assert any((tmp_path / "checkpoints").glob("[0-9]*"))
  done = run(tmp_path)
  assert done.returncode == 0, done.stderr
  assert rows(tmp_path) == rows(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_what_no_checkpoint_holds_yet(tmp_path, number):
  length = ["--config.iterations=9000", "--config.checkpoint_every=9000"]
  process = subprocess.Popen(
    command(tmp_path, *length), cwd=ROOT, stderr=subprocess.PIPE, text=True
  )
  metrics, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 240
  while time.monotonic() < deadline:
    if metrics.exists() and len(metrics.read_text().splitlines()) > 2:
      break
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.005)
  assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
  process.send_signal(number)
  _, said = process.communicate(timeout=120)
  assert process.returncode == 128 + number, said
  (saved,) = (tmp_path / "checkpoints").glob("[0-9]*")
  assert rows(tmp_path)[-1]["step"] == int(saved.name) >= 2


def test_a_folder_in_place_of_the_report_is_one_line(whole, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(whole, folder)
  (folder / "report.html").unlink()
  (folder / "report.html").mkdir()
  done = run(folder, "--config.iterations=8")
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "report.html cannot be written" in done.stderr


def test_a_longer_run_on_a_falling_rate_says_what_becomes_of_it(tmp_path):
  folder, falling = tmp_path / "run", "--config.optimizer.linear_decay=true"
  assert run(folder, falling).returncode == 0
  done = run(folder, falling, "--config.iterations=8")
  assert done.returncode == 0, done.stderr
  (line,) = [x for x in done.stderr.splitlines() if "learning rate now" in x]
  assert "at iteration 8 instead of 6" in line
  assert "goes on at 25 % of the first, where it stood at 0 %" in line


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_run_that_compiles(tmp_path):
  process = subprocess.Popen(
    command(tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True,
    env=os.environ | {"JAX_COMPILATION_CACHE_DIR": ""},
  )  # fmt: skip
  said = []
  for line in process.stderr:
    said.append(line)
    if line == "compiling…\n":
      break
  time.sleep(2)  # It traces for a while, in Python.
  process.send_signal(signal.SIGINT)
  for line in process.stderr:
    said.append(line)
    if "stops after compiling" in line:
      break
  time.sleep(1.2)
  process.send_signal(signal.SIGINT)
  _, rest = process.communicate(timeout=10)
  assert process.returncode == 130, "".join(said) + rest
  assert "Traceback" not in rest
  assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_supervised_run_that_is_killed_goes_on_by_itself(whole, tmp_path):
  process = subprocess.Popen(
    command(tmp_path, "--max_restarts=3"),
    cwd=ROOT, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  wait_for(process, tmp_path / "checkpoints" / "2")
  children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
  os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
  _, stderr = process.communicate(timeout=240)
  assert process.returncode == 0, stderr
  assert "exit code 137; restart 1 of 3" in stderr and "resuming" in stderr
  assert rows(tmp_path) == rows(whole)


def test_a_full_disk_does_not_stop_a_run(whole, tmp_path):
  process = subprocess.Popen(
    command(tmp_path, "--config.iterations=60"),
    cwd=ROOT, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  wait_for(process, tmp_path / "checkpoints" / "2")
  unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (64, unlimited[1]))
  lines = []
  for line in process.stderr:
    lines.append(line)
    if "was not written" in line:
      break
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
  _, stderr = process.communicate(timeout=240)
  assert process.returncode == 0, "".join(lines) + stderr
  assert "was not written" in lines[-1]
  found = rows(tmp_path)
  assert [row["step"] for row in found] == list(range(61))
  assert found[:6] == rows(whole)[:6]
  assert (tmp_path / "checkpoints" / "60").is_dir()


def test_a_damaged_checkpoint_is_passed_over_aloud(whole, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  for file in (workdir / "checkpoints" / "6").rglob("*"):
    if file.is_file():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  done = run(workdir)
  assert done.returncode == 0, done.stderr
  assert "damaged" in done.stderr and "resuming" in done.stderr
  assert rows(workdir) == rows(whole)


def test_a_longer_run_goes_on_in_the_same_folder(whole, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  done = run(workdir, "--config.iterations=8", GLIBC_TUNABLES="")
  assert done.returncode == 0, done.stderr
  # Once, and on no other stream: nothing here asks for large pages.
  assert done.stderr.count("GLIBC_TUNABLES=glibc.malloc.hugetlb=1") == 1
  assert "GLIBC_TUNABLES" not in done.stdout
  assert rows(workdir)[:6] == rows(whole)[:6]
  assert rows(workdir)[-1]["step"] == 8
  assert "no response in 8 iterations" in done.stderr  # Nor in the first 6.
  assert f"plots and samples: {workdir}/report.html" in done.stdout


@pytest.mark.slow
def test_a_run_says_what_takes_long(tmp_path):
  done = run(tmp_path, "--config.iterations=2")
  said = [line.partition(" took")[0] for line in done.stderr.splitlines()]
  phases = [w for w in said if w.endswith("…")]
  assert phases == [
    "evaluating…", "compiling…", "evaluating…", "writing the report…"
  ]  # fmt: skip
  before, after = (
    next(i for i, line in enumerate(said) if line.startswith(start))
    for start in ("tokens: up to", "an iteration takes")
  )
  assert before < said.index("compiling…") < after


@pytest.mark.slow
def test_a_run_that_ended_between_two_evaluations_finds_back(tmp_path):
  """In this process, which compiles once: other tests resume in another."""
  changes = {"iterations_per_call": "2", "eval.every": "4"}
  for iterations in ("3", "9"):
    changes["iterations"] = iterations
    config = config_lib.override(small_experiment.get_config(), changes)
    train.train(config, tmp_path)
  evaluated = [row["step"] for row in rows(tmp_path) if "eval" in row]
  assert evaluated == [0, 3, 4, 8, 9]
  assert [row["step"] for row in rows(tmp_path)] == list(range(10))


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--config.search.num_simulation=3", "search.num_simulations"),
    ("--config.iterations=many", "an integer"),
    ("--config.search.num_candidates=999", "exceeds model.vocab_size"),
    ("--config.rollout.prompts=15", "multiple of optimizer.minibatches"),
    ("--config.search.trees=6", "must be a multiple of search.trees=6"),
    ("--config.search.leaf=value", "never trained"),
    ("--config.mesh.data=16", "devices"),
    ("--config.init=nowhere.safetensors", "no parameters at"),
    ("--config.eval.modes=best", "use greedy, mean@K"),
    ("--config.algorithm=dpo", "one of tsd, ppo"),
    ("--workdri=x", "workdir"),
  ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, flag, words):
  done = run(tmp_path / "run", flag)
  assert done.returncode == 2, done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: ") and words in last
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "run").exists()


def test_another_runs_folder_is_refused_and_kept(whole):
  before = (whole / "metrics.jsonl").read_bytes()
  done = run(whole, "--config.seed=1")
  assert done.returncode == 2
  assert "seed: saved 0, now 1" in done.stderr
  assert (whole / "metrics.jsonl").read_bytes() == before


def test_a_broken_loss_stops_the_run_and_keeps_the_checkpoint(whole, tmp_path):
  done = run(tmp_path, "--config.optimizer.learning_rate=1e30")
  assert done.returncode == 2
  assert "became" in done.stderr and "learning_rate" in done.stderr
  assert "there is no checkpoint yet" in done.stderr


def test_weights_without_sense_are_no_checkpoint(tmp_path):
  """The losses of the first iteration are finite all the same."""
  done = run(
    tmp_path,
    "--config.optimizer.learning_rate=1e7",
    "--config.checkpoint_every=1",
  )
  assert done.returncode == 2, done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert "['params']" in last and "there is no checkpoint yet" in last
  assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_stopped_comparison_does_not_start_its_next_run(tmp_path):
  line = [
    sys.executable, "-m", "launch.local", f"--config={CONFIG}",
    f"--workdir={tmp_path}",
  ]  # fmt: skip
  process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)
  wait_for(process, tmp_path / "tsd" / "checkpoints" / "2")
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=120)
  assert process.returncode == 130
  assert "the same command resumes" in stderr
  assert not (tmp_path / "ppo").exists()


def test_two_processes_never_train_in_one_folder(tmp_path):
  first = subprocess.Popen(
    command(tmp_path, "--config.iterations=200"),
    cwd=ROOT, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  wait_for(first, tmp_path / "checkpoints" / "2")
  second = run(tmp_path, "--config.iterations=200")
  assert second.returncode == 2
  assert "another process trains in" in second.stderr
  first.kill()
  first.communicate(timeout=60)


def test_a_finished_run_is_left_as_it_is(whole):
  before = {f: f.stat().st_mtime_ns for f in whole.iterdir() if f.is_file()}
  done = run(whole)
  assert done.returncode == 0 and "mean@2" in done.stdout
  after = {f: f.stat().st_mtime_ns for f in before}
  for name in ("metrics.jsonl", "report.html", "samples.json"):
    assert after[whole / name] == before[whole / name]
