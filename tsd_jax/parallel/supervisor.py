"""Starts processes, and restarts a training that died; no JAX in here.

The supervisor holds no device and no memory, so what kills the run (a lost
worker whose partners abort, the out-of-memory killer, a bad host) leaves it
alive. The run itself resumes from its last good checkpoint. Where the
supervisor is killed, Linux kills the run too: nobody would look after it.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from tsd_jax.base import signals

# Would only happen again: done; bad input or a broken loss; the user's Ctrl-C.
FINAL_CODES = (0, 2, 130)

# Asks Linux for SIGKILL when the parent dies, which survives exec, and becomes
# the command. The parent may have died before it was asked.
_TIED = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
  os.execvp(sys.argv[2], sys.argv[2:])
"""


def tied(command: Sequence[str], parent: int) -> list[str]:
  """The command, so that it does not outlive its parent (on Linux)."""
  if sys.platform != "linux":
    return list(command)
  # -I and -S: nothing but the standard library is looked at.
  return [sys.executable, "-I", "-S", "-c", _TIED, str(parent), *command]


def import_path() -> str:
  """PYTHONPATH of a process that is to import what this one does."""
  return os.pathsep.join(path or os.getcwd() for path in sys.path)


def supervise(
  command: Sequence[str], max_restarts: int, *, pause: float = 1.0
) -> int:
  """Runs a command until it ends well, or has died too often.

  The signals that ask to stop are passed on; the command then saves and stops,
  and is not started again.

  Args:
    command: the process, its arguments.
    max_restarts: how often it is started again.
    pause: seconds before the first restart, doubled for each, at most 60.

  Returns:
    The exit code of its last run, 128 + N for one that signal N killed.
  """
  process, asked = None, []

  def pass_on(number, _):
    asked.append(number)
    if process is not None and process.poll() is None:
      process.send_signal(number)

  with signals.handled(pass_on):
    for restart in range(max_restarts + 1):
      # Its own session: a terminal's Ctrl-C reaches it once, through us.
      process = subprocess.Popen(
        tied(command, os.getpid()), start_new_session=True
      )
      if asked:  # The signal came before there was anyone to pass it on to.
        process.send_signal(asked[-1])
      code = process.wait()
      code = 128 - code if code < 0 else code
      if code in FINAL_CODES or asked:
        return code
      if restart == max_restarts:
        _say(f"the run died with exit code {code}; no restart is left")
        return code
      delay = min(pause * 2**restart, 60.0)
      _say(
        f"the run died with exit code {code}; restart {restart + 1} of "
        f"{max_restarts} in {delay:g} s, from the last good checkpoint"
      )
      deadline = time.monotonic() + delay
      while not asked and time.monotonic() < deadline:
        time.sleep(min(0.1, delay))
      if asked:
        return 128 + asked[-1]
  raise AssertionError("the last restart returns")


def _say(text: str) -> None:
  with contextlib.suppress(OSError):  # The terminal may be gone.
    print(f"supervisor: {text}", file=sys.stderr, flush=True)
