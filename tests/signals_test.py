"""Ctrl-C is heard while nothing of Python runs, and the second one ends."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tsd_jax.base import signals

ROOT = pathlib.Path(__file__).resolve().parent.parent
# OpenSSL computes for minutes: no handler of Python's runs meanwhile.
DEAF = "hashlib.pbkdf2_hmac('sha256', b'', b'', 400_000_000)"
SAVING = f"""
import hashlib
from tsd_jax.base import signals
with signals.command():
  with signals.requests(lambda: "compiling") as asked:
    print("ready", flush=True)
    {DEAF}
"""
COMMAND = f"""
import hashlib
from tsd_jax.base import signals
with signals.command():
  print("ready", flush=True)
  {DEAF}
"""
# A process of somebody else's, such as a notebook's.
GUEST = """
import time
from tsd_jax.base import signals
try:
  with signals.requests(lambda: "iteration 3") as asked:
    print("ready", flush=True)
    time.sleep(60)
    time.sleep(60)
except KeyboardInterrupt:
  print(asked, flush=True)
"""


def start(code):
  process = subprocess.Popen(
    [sys.executable, "-c", code], cwd=ROOT, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip
  assert process.stdout.readline() == "ready\n"
  time.sleep(0.5)  # Now it computes.
  return process


@pytest.mark.parametrize(
  ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_the_first_says_what_it_waits_for_and_the_second_ends(number, name):
  process = start(SAVING)
  process.send_signal(number)
  process.send_signal(number)  # Of the same request, as a terminal sends it.
  said = process.stderr.readline() + process.stderr.readline()
  assert said == (
    f"\n{name}: stops after compiling, and saves; {name} again ends at once, "
    "without\n"
  )
  time.sleep(signals._ONE_REQUEST + 0.2)
  assert process.poll() is None
  process.send_signal(number)
  _, more = process.communicate(timeout=5)
  assert (process.returncode, more) == (128 + number, "")


def test_a_command_that_has_nothing_to_save_ends_soon():
  process = start(COMMAND)
  process.send_signal(signal.SIGINT)
  process.communicate(timeout=signals._UNWINDING + 5)
  assert process.returncode == 130


def test_a_command_with_a_handler_of_its_own_goes_on():
  code = """
import time
from tsd_jax.base import signals
with signals.command(), signals.handled(lambda number, _: print(number)):
  print("ready", flush=True)
  end = time.monotonic() + signals._UNWINDING + 1.5
  while time.monotonic() < end:
    time.sleep(0.1)
"""
  process = start(code)
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=10)
  assert (process.returncode, out, err) == (0, "2\n", "")


def test_the_second_leaves_another_programs_process_alive():
  process = start(GUEST)
  process.send_signal(signal.SIGINT)
  time.sleep(signals._ONE_REQUEST + 0.2)
  process.send_signal(signal.SIGINT)
  out, _ = process.communicate(timeout=5)
  assert (process.returncode, out) == (0, f"[{int(signal.SIGINT)}]\n")


def test_handlers_are_given_back():
  before = [signal.getsignal(number) for number in signals.SIGNALS]
  with signals.requests(lambda: "") as asked:
    os.kill(os.getpid(), signal.SIGTERM)
    assert asked == [signal.SIGTERM]
  assert [signal.getsignal(number) for number in signals.SIGNALS] == before
  assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(
  ("asked", "code"), [([signal.SIGTERM], 143), ([], 143)]
)
def test_the_exit_code_is_that_of_the_signal(asked, code):
  with pytest.raises(SystemExit) as ended:
    signals.end(asked)
  assert ended.value.code == code


def test_ctrl_c_ends_as_python_does():
  with pytest.raises(KeyboardInterrupt):
    signals.end([signal.SIGTERM, signal.SIGINT])
