"""Commands start with memory in large pages, and stay the process they were."""

import subprocess
import sys

import pytest

from tsd_jax.base import large_pages

COMMAND = """
import os, sys
from tsd_jax import config

def main(overrides):
  print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.stdin.read())

config.run(main)
"""


def started(environment):
  """What a command says of itself, and its number."""
  process = subprocess.Popen(
    [sys.executable, "-c", COMMAND],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env=environment | {"PYTHONPATH": ":".join(sys.path)},
    text=True,
  )
  said, _ = process.communicate("input")
  assert process.returncode == 0
  return said.split(), str(process.pid)


@pytest.mark.skipif(
  large_pages.environment({}) is None, reason="no glibc on Linux"
)
def test_a_command_becomes_itself_with_large_pages():
  said, pid = started({})
  assert said == [pid, "glibc.malloc.hugetlb=1", "input"]
  # What the user asks for stays.
  said, pid = started({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"})
  assert said == [pid, "glibc.malloc.hugetlb=0", "input"]


def test_other_tunables_are_kept():
  given = {"HOME": "/", "GLIBC_TUNABLES": "glibc.malloc.check=1"}
  assert large_pages.environment(given, "linux", "glibc") == {
    "HOME": "/",
    "GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1",
  }
  assert large_pages.environment({}, "darwin", "") is None
  assert large_pages.environment({}, "linux", "") is None  # musl


def test_a_process_that_only_calls_run_goes_on(monkeypatch):
  from tsd_jax.base import config

  monkeypatch.setattr(large_pages.os, "execve", pytest.fail)
  monkeypatch.setattr(sys, "argv", ["command"])
  with pytest.raises(SystemExit) as end:
    config.run(lambda overrides: 3)
  assert end.value.code == 3
