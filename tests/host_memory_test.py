"""What a process holds is its own."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks import host_memory
from tsd_jax.base.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_a_process_answers_for_its_own_memory_alone():
  """Not for that of a large one that started it."""
  held = np.ones(2**28, np.uint8)
  code = "from experiments.benchmarks import host_memory as h; print(h.peak())"
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True
  )
  assert host_memory.held() > held.nbytes
  assert host_memory.peak() > held.nbytes > int(done.stdout) > 2**20


def test_a_process_that_has_ended_holds_nothing():
  process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1)
  assert host_memory.held(process.pid) > 0
  process.communicate()
  assert host_memory.held(process.pid) == 0


def test_a_system_that_does_not_say_it_is_refused():
  with pytest.raises(UserError, match="has no VmNothing: use Linux"):
    host_memory.held(field="VmNothing")
