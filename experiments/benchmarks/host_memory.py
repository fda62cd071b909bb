"""The memory of a process, as Linux counts it.

Not by `getrusage`, whose `ru_maxrss` begins with what the process held that
started this one.
"""

import pathlib

from tsd_jax.base.errors import UserError


def held(process: int | str = "self", field: str = "VmRSS") -> int:
  """Bytes that a process holds; 0 once it has ended.

  Args:
    process: its number.
    field: of /proc/PROCESS/status.

  Raises:
    UserError: the system is no Linux.
  """
  try:
    status = pathlib.Path(f"/proc/{process}/status").read_text()
  except OSError:
    status = ""
  found = [line for line in status.splitlines() if line.startswith(field)]
  if not found and process == "self":
    raise UserError(f"/proc/self/status has no {field}: use Linux")
  return 1024 * int(found[0].split()[1]) if found else 0


def peak() -> int:
  """The most bytes that this process ever held."""
  return held(field="VmHWM")
