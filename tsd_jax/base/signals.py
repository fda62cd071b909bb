"""Signals that ask a program to stop are heard at once, whatever it computes.

Python runs a handler between two of its own instructions, and a program that
XLA compiles keeps it from the next one for a minute. So a thread reads from a
pipe, which the system's handler writes to, what came.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

# Each saves, then ends the program. SIGHUP: its terminal is gone.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Of one request: a terminal or a cluster sends a signal to all processes, and a
# parent passes its own on.
_ONE_REQUEST = 1.0
_UNWINDING = 2.0  # Seconds for Python to end by itself.
_ends_process = False  # Whether a second request may end the process.


@contextlib.contextmanager
def handled(handler: Callable[[int, object], None]) -> Iterator[None]:
  """Has a handler for every one of `SIGNALS`, for a while.

  A SIGHUP that is ignored stays so: that is what `nohup` asks for.
  """
  before = {
    number: signal.signal(number, handler)
    for number in SIGNALS
    if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)
  }
  try:
    yield
  finally:
    for number, theirs in before.items():
      signal.signal(number, theirs)


@contextlib.contextmanager
def requests(waits_for: Callable[[], str]) -> Iterator[list[int]]:
  """Lists the signals that come, instead of ending at once.

  The first is answered on standard error. The second ends a command at once; in
  a process that is not a command's, such as a notebook's, it raises
  KeyboardInterrupt as soon as Python runs again.

  Args:
    waits_for: says what is being done, which the first signal waits for.
  """
  asked: list[int] = []
  first = 0.0

  def again() -> bool:
    nonlocal first
    first = first or time.monotonic()
    return time.monotonic() - first > _ONE_REQUEST

  def hear(number: int) -> None:
    new = not first
    if again() and _ends_process:
      os._exit(128 + number)
    if new:
      _say(number, waits_for())

  def handle(number: int, frame: object) -> None:
    del frame
    if asked and again():
      raise KeyboardInterrupt
    asked.append(number)

  with handled(handle), _heard(hear):
    yield asked


@contextlib.contextmanager
def command() -> Iterator[None]:
  """Runs a command, which owns its process and has nothing to save.

  Ctrl-C raises KeyboardInterrupt, and ends the process where that is not heard.
  What has something to save asks for `requests`.
  """
  global _ends_process
  over = threading.Event()

  def hear(number: int) -> None:
    # Whoever has a handler of their own knows what to do, as a supervisor does.
    default = signal.getsignal(number) is signal.default_int_handler
    if default and not over.wait(_UNWINDING):
      os._exit(128 + number)

  before, _ends_process = _ends_process, True
  try:
    with _heard(hear):
      try:
        yield
      finally:
        over.set()
  finally:
    _ends_process = before


def end(asked: Sequence[int]) -> NoReturn:
  """Ends as the signals ask that came, or that came to another host."""
  if signal.SIGINT in asked:
    raise KeyboardInterrupt
  sys.exit(128 + (asked[0] if asked else signal.SIGTERM))


def _say(number: int, waits_for: str) -> None:
  """Says what the first signal waits for."""
  sigint = number == signal.SIGINT
  name = "Ctrl-C" if sigint else signal.Signals(number).name
  with contextlib.suppress(OSError):  # The terminal may be gone.
    print(
      f"\n{name}: stops after {waits_for}, and saves; {name} again ends at "
      "once, without",
      file=sys.stderr,
      flush=True,
    )


@contextlib.contextmanager
def _heard(hear: Callable[[int], None]) -> Iterator[None]:
  """Has a thread call a function with each of `SIGNALS` that comes.

  They must have handlers in Python. Nothing is heard outside of the main
  thread, to which signals belong.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  read, write = os.pipe()
  os.set_blocking(write, False)

  def listen() -> None:
    while came := os.read(read, 1):
      if came[0] in SIGNALS:
        hear(came[0])

  thread = threading.Thread(target=listen, daemon=True)
  before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(write)  # The thread reads the end.
    thread.join()
    os.close(read)
