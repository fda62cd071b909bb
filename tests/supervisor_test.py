"""The supervisor, on commands that die in every way a run may."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tsd_jax.base import signals
from tsd_jax.parallel import supervisor

ROOT = pathlib.Path(__file__).resolve().parent.parent


def counting(folder, body):
  """A command that adds a line to a file, then does something."""
  script = f"""
import os, pathlib, signal, sys, time
file = pathlib.Path({str(folder / "starts")!r})
file.open("a").write("x")
n = len(file.read_text())
{body}
"""
  return [sys.executable, "-c", script]


def starts(folder):
  file = folder / "starts"
  return len(file.read_text()) if file.exists() else 0


@pytest.mark.parametrize(
  ("body", "code", "count"),
  [
    ("sys.exit(0 if n == 3 else 1)", 0, 3),  # A crash.
    ("n < 3 and os.kill(os.getpid(), 9)", 0, 3),  # The out-of-memory killer.
    ("n < 3 and os.abort()", 0, 3),  # A partner was lost.
    ("sys.exit(0 if n == 3 else 143)", 0, 3),  # Preempted, saved.
    ("sys.exit(2)", 2, 1),  # Bad input would only be bad again.
    ("sys.exit(130)", 130, 1),  # The user's Ctrl-C.
    ("sys.exit(7)", 7, 4),  # The budget ends.
    ("os.kill(os.getpid(), 9)", 137, 4),
  ],
)
def test_what_is_started_again(tmp_path, capfd, body, code, count):
  command = counting(tmp_path, body)
  assert supervisor.supervise(command, 3, pause=0.01) == code
  assert starts(tmp_path) == count
  deaths = count - 1 if code in supervisor.FINAL_CODES else count
  assert capfd.readouterr().err.count("the run died") == deaths


@pytest.mark.parametrize(
  "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
)
def test_a_signal_is_passed_on_once_and_ends_it(tmp_path, number):
  body = """
got = []
for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
  signal.signal(s, lambda s, _: got.append(s))
pathlib.Path(file.parent / "ready").touch()
while not got: time.sleep(0.01)
time.sleep(0.2)  # Saves.
print(f"{len(got)} signals", flush=True)
sys.exit(128 + got[0])
"""
  run = f"""
import sys
from tsd_jax.parallel import supervisor
sys.exit(supervisor.supervise({counting(tmp_path, body)!r}, 5, pause=0.01))
"""
  process = subprocess.Popen(
    [sys.executable, "-c", run], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
  deadline = time.monotonic() + 60
  while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
    time.sleep(0.01)
  process.send_signal(number)
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 128 + number
  assert out == "1 signals\n" and starts(tmp_path) == 1


def test_a_hangup_that_is_ignored_stays_so():
  """As under nohup."""
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  got = []
  try:
    with signals.handled(lambda number, _: got.append(number)):
      for number in signals.SIGNALS:
        os.kill(os.getpid(), number)
    assert got == [signal.SIGINT, signal.SIGTERM]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux kills the run")
def test_a_killed_supervisor_takes_the_run_with_it(tmp_path):
  body = """
(file.parent / "partial").write_text(str(os.getpid()))
os.replace(file.parent / "partial", file.parent / "pid")
time.sleep(600)
"""
  run = f"""
from tsd_jax.parallel import supervisor
supervisor.supervise({counting(tmp_path, body)!r}, 5)
"""
  process = subprocess.Popen([sys.executable, "-c", run], cwd=ROOT)

  def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
      time.sleep(0.01)
    return condition()

  assert until((tmp_path / "pid").exists, 60)
  stat = pathlib.Path("/proc", (tmp_path / "pid").read_text(), "stat")

  def gone():
    try:
      # A dead process stays listed until its new parent looks.
      return stat.read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
      return True

  assert not gone()
  process.kill()
  process.wait()
  assert until(gone, 10)
  assert starts(tmp_path) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="Linux kills the run")
@pytest.mark.parametrize("dead", [False, True])
def test_a_run_whose_supervisor_is_gone_never_starts(tmp_path, dead):
  parent = os.getppid() if dead else os.getpid()
  command = supervisor.tied(counting(tmp_path, ""), parent)
  subprocess.run(command, check=True)
  assert starts(tmp_path) == (0 if dead else 1)


def test_the_parent_holds_no_jax():
  line = "import launch.train, sys; sys.exit('jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, check=False)
  assert done.returncode == 0
