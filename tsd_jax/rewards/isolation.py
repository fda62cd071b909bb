"""What a worker's process may do to the machine; no JAX in here.

Linux has the means, of which some need rights that a container may withhold
(`refusal`). Elsewhere a process is one to lose, and no more.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence

# Variables that Python and its libraries need to start; tokens are not here.
_KEPT = (
  "PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR",
  "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONHASHSEED", "VIRTUAL_ENV",
)  # fmt: skip
# Threads of numerical libraries would not survive a fork.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

PROCESSES = 64  # Of a worker, threads counted; root is let some more.
_FILE_BYTES = 2**28
_OPEN_FILES = 256

_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 2**30
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_CHILD_SUBREAPER = 1, 4, 36
_SET_NO_NEW_PRIVS = 38
_CAPABILITIES_3 = 0x20080522  # The version of capset's header.

_LINUX = sys.platform == "linux"
_LIBC = ctypes.CDLL(None, use_errno=True)


def environment(
  own: Mapping[str, str], import_path: str, names: Sequence[str] = ()
) -> dict[str, str]:
  """The variables that a worker sees.

  Args:
    own: those of this process.
    import_path: PYTHONPATH.
    names: variables that are kept beside what Python needs.
  """
  kept = {name: own[name] for name in (*_KEPT, *names) if name in own}
  return kept | {
    "PYTHONPATH": import_path,
    "JAX_PLATFORMS": "cpu",  # The accelerator is the trainer's.
    **dict.fromkeys(_ONE_THREAD, "1"),
  }


def tie_to(parent: int) -> None:
  """Ends this process when its parent ends.

  Args:
    parent: the parent's number as this process sees it; another one says that
      the parent has ended already.
  """
  if _LINUX:
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
      os._exit(1)


def refusal() -> str:
  """Why the system gives a process no namespaces of its own; "" if it does.

  A child of this process tries it.
  """
  if not _LINUX:
    return f"{sys.platform} has no namespaces"
  pid = os.fork()
  if not pid:
    code = 1
    try:
      enter_namespaces(network=False)
      code = 0
    except OSError as error:
      code = error.errno or 1
    finally:
      os._exit(code)
  code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  return os.strerror(code) if code else ""


def enter_namespaces(network: bool) -> None:
  """Gives this process's children namespaces of processes and network.

  The next fork makes the first of them: when it ends, Linux ends the others,
  however they were started, and none sees or signals a process outside.

  Args:
    network: whether they may use the network.

  Raises:
    OSError: the system does not let it.
  """
  user, group = os.geteuid(), os.getegid()
  flags = _CLONE_NEWUSER | _CLONE_NEWPID | (0 if network else _CLONE_NEWNET)
  _checked(_LIBC.unshare(flags))
  for file, text in {
    "setgroups": "deny",
    "uid_map": f"{user} {user} 1",
    "gid_map": f"{group} {group} 1",
  }.items():
    _write(f"/proc/self/{file}", text)


def confine(memory_mib: int, namespaces: bool) -> None:
  """Limits this process and its children, for good.

  Args:
    memory_mib: address space of each.
    namespaces: whether they have their own, so that processes are counted
      beside no others.
  """
  _limit(resource.RLIMIT_AS, memory_mib * 2**20)
  _limit(resource.RLIMIT_FSIZE, _FILE_BYTES)
  _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
  _limit(resource.RLIMIT_CORE, 0)
  if not _LINUX:
    return
  if namespaces and _kernel() >= (5, 14):
    _limit(resource.RLIMIT_NPROC, PROCESSES)
  if namespaces and _kernel() >= (6, 14):  # Before, it was the machine's.
    # For root, whom the limit above does not hold. Linux reserves 300.
    with contextlib.suppress(OSError):
      _write("/proc/sys/kernel/pid_max", str(300 + PROCESSES))
  _prctl(_SET_CHILD_SUBREAPER, 1)  # Orphans become children of this process.
  _prctl(_SET_NO_NEW_PRIVS, 1)
  header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
  _checked(_LIBC.capset(header, (ctypes.c_uint32 * 6)()))
  _prctl(_SET_DUMPABLE, 0)  # Its memory and files are closed to its children.


def end_children() -> None:
  """Kills all descendants of this process, and waits until none is left.

  Those that left their group or their parent are found too: they are children
  of this process by then (`confine`).
  """
  with contextlib.suppress(ChildProcessError):  # None is left.
    while True:
      pid, _ = os.waitpid(-1, os.WNOHANG)
      if pid:
        continue
      if os.getpid() == 1:  # Of a namespace: everyone else in it.
        os.kill(-1, signal.SIGKILL)
      else:
        for child in _children():
          with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
      time.sleep(1e-4)


def _children() -> list[int]:
  """Numbers of this process's children, read from /proc."""
  found = []
  for pid in filter(str.isdigit, os.listdir("/proc")):
    with contextlib.suppress(OSError):  # It has ended.
      with open(f"/proc/{pid}/stat") as file:
        _, parent, *_ = file.read().rpartition(")")[2].split()
      if int(parent) == os.getpid():
        found.append(int(pid))
  return found


def _limit(which: int, value: int) -> None:
  _, most = resource.getrlimit(which)
  if most == resource.RLIM_INFINITY or value < most:
    resource.setrlimit(which, (value, value))


def _kernel() -> tuple[int, ...]:
  major, minor, *_ = os.uname().release.split(".")
  return int(major), int(minor)


def _write(file: str, text: str) -> None:
  with open(file, "w") as opened:
    opened.write(text)


def _prctl(option: int, value: int) -> None:
  _checked(_LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def _checked(code: int) -> None:
  if code:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
