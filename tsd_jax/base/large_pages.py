"""Memory in large pages: whether a process has it, and how to ask for it.

XLA's CPU backend takes fresh memory for every call of a program, and its matrix
products more inside of one. Linux hands that out, zeroed, when it is touched: 4
KiB at a time that is a twentieth to a third of an update, 2 MiB at a time next
to nothing. The C library asks for large pages where a variable says so that it
reads once, when a process starts: `launch/large_pages.sh` sets it.
"""

from collections.abc import Mapping

_VARIABLE = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"


def hint(environment: Mapping[str, str], system: str, libc: str) -> str:
  """A line that says how to have large pages; "" where nothing is to be said.

  Whoever has given the tunable a value, whichever it is, has decided.

  Args:
    environment: of the process.
    system: name of the operating system, as in `sys.platform`.
    libc: name of the C library, as `platform.libc_ver` finds it.
  """
  given = [t for t in environment.get(_VARIABLE, "").split(":") if t]
  decided = any(t.startswith(f"{_TUNABLE}=") for t in given)
  if decided or system != "linux" or libc != "glibc":
    return ""
  wanted = ":".join([*given, f"{_TUNABLE}=1"])
  return (
    "memory is not in large pages, with which a CPU may take a third less "
    f"time: set {_VARIABLE}={wanted} before Python starts"
  )
