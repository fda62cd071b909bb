"""Memory in large pages, asked for before a process does anything else.

XLA's CPU backend takes fresh memory for every call of a program, and its matrix
products more inside of one. Linux hands that out, zeroed, when it is touched: 4
KiB at a time that is a twentieth to a third of an update, 2 MiB at a time next
to nothing. The C library asks for large pages where a variable says so that it
reads once, when a process starts.
"""

import os
import platform
import sys

_VARIABLE = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"


def environment(
  given: dict[str, str], system: str = sys.platform, libc: str | None = None
) -> dict[str, str] | None:
  """What a process must start with for large pages; None if there is no need.

  A value that was given, such as `glibc.malloc.hugetlb=0`, is left alone.

  Args:
    given: the environment of this process.
    system: name of the operating system, as in `sys.platform`.
    libc: name of the C library, as `platform.libc_ver` finds it.
  """
  if system != "linux" or _TUNABLE in given.get(_VARIABLE, ""):
    return None
  if (platform.libc_ver()[0] if libc is None else libc) != "glibc":
    return None
  tunables = [*filter(None, [given.get(_VARIABLE)]), f"{_TUNABLE}=1"]
  return given | {_VARIABLE: ":".join(tunables)}


def start_again() -> None:
  """Becomes the same command with large pages, where it has none yet.

  The process keeps its number, its parent and its open files.
  """
  wanted = environment(dict(os.environ))
  if wanted is not None and sys.executable:  # An embedded Python has none.
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, command, wanted)
