"""Compiled programs outlive a command, where the user lets them."""

import os
import subprocess
import sys

import pytest

from tsd_jax.base import compilation_cache
from tsd_jax.base.paths import ROOT

CODE = """
import jax
from tsd_jax.base import compilation_cache
compilation_cache.enable()
f = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y @ y + i, x))
f(jax.numpy.ones((8, 8))).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("given", [None, "", "elsewhere"])
def test_programs_are_kept_unless_the_user_says_otherwise(given, tmp_path):
  environment = {**os.environ, "HOME": str(tmp_path / "home")}
  environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  environment.pop(compilation_cache.VARIABLE)
  folder = tmp_path / "home" / ".cache" / "tsd_jax" / "xla"
  if given is not None:
    folder = tmp_path / given
    environment[compilation_cache.VARIABLE] = given and str(folder)
  done = subprocess.run(
    [sys.executable, "-c", CODE], cwd=ROOT, env=environment,
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  kept = list(folder.glob("*-cache"))
  assert bool(kept) == (given != "")
  assert (tmp_path / "home").exists() == (given is None)


def test_a_home_that_cannot_be_written_is_no_obstacle(tmp_path):
  (tmp_path / "home").write_text("a file")
  environment = {**os.environ, "HOME": str(tmp_path / "home")}
  environment.pop(compilation_cache.VARIABLE)
  done = subprocess.run(
    [sys.executable, "-c", CODE], cwd=ROOT, env=environment,
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0 and "are not kept" in done.stderr
