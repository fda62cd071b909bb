"""A disk that is full: told in a line, nothing left behind, and no run lost.

The disk is a small one in memory, which only the processes under test see.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
_UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
TRAIN = [
  sys.executable, "-m", "launch.train", "--config=tests/small_experiment.py",
  "--config.eval.every=0",
]  # fmt: skip


def gives_disks() -> bool:
  command = [*_UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
  try:
    done = subprocess.run(command, capture_output=True, check=False)
  except OSError:
    return False
  return done.returncode == 0


pytestmark = pytest.mark.skipif(
  not gives_disks(), reason="the system gives no disk of one's own"
)


def on_a_disk(folder, script, **environment):
  """Runs a script with a disk of 1.5 MB at a folder; gives what it says."""
  mount = f"mount -t tmpfs -o size=1500k tmpfs {shlex.quote(str(folder))}"
  return subprocess.run(
    [*_UNSHARE, "bash", "-c", f"{mount} && {script}"],
    cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    env=os.environ | environment,
  )  # fmt: skip


def errors(text):
  return [line for line in text.splitlines() if line.startswith("error:")]


@pytest.mark.slow
def test_a_run_on_a_full_disk_says_so_once_and_goes_on_later(tmp_path):
  disk, whole = tmp_path / "disk", tmp_path / "whole"
  disk.mkdir()
  train = shlex.join([*TRAIN, f"--workdir={disk}/run"])
  done = on_a_disk(
    disk,
    f"""head -c 1400000 /dev/zero >{disk}/filler
    {train} 2>{tmp_path}/first; echo $? >{tmp_path}/rc
    find {disk} -name '*tmp*' >{tmp_path}/left
    rm {disk}/filler
    {train} && cp {disk}/run/metrics.jsonl {tmp_path}""",
  )
  said = (tmp_path / "first").read_text()
  assert (tmp_path / "rc").read_text() != "0\n"
  assert (tmp_path / "left").read_text() == ""
  (line,) = errors(said)
  assert "free some space" in line and "the same command resumes" in line
  assert said.count("was not written") == 1
  assert "Traceback" not in said and "never retrieved" not in said
  assert done.returncode == 0, done.stderr
  subprocess.run([*TRAIN, f"--workdir={whole}"], cwd=ROOT, check=True)

  def rows(file):
    read = [json.loads(row) for row in file.read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read]

  assert rows(tmp_path / "metrics.jsonl") == rows(whole / "metrics.jsonl")


def test_a_dataset_for_which_there_is_no_room_is_told_in_a_line(tmp_path):
  build = """
from tsd_jax.base import config
from tsd_jax.tasks import data
from tsd_jax.tasks.countdown import CountdownConfig

config.run(lambda _: data.load_problems(CountdownConfig(), "test"))
"""
  done = on_a_disk(
    tmp_path,
    f"""head -c 1400000 /dev/zero >{tmp_path}/filler
    {shlex.join([sys.executable, "-c", build])}; echo $?
    find {tmp_path} -name '.building*' -o -name '*.array_record*'""",
    TSD_JAX_DATA_DIR=str(tmp_path / "data"),
  )
  assert done.stdout == "2\n", done.stderr
  (line,) = errors(done.stderr)
  assert "No space left" in line and "TSD_JAX_DATA_DIR" in line
  assert "Traceback" not in done.stderr
