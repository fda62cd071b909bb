"""Eight virtual CPU devices and a compilation cache, set before JAX starts."""

import collections
import gc
import importlib
import os
import pathlib
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is LLVM's, for programs that run for a moment.
os.environ["XLA_FLAGS"] = " ".join(
  (
    "--xla_backend_optimization_level=0",
    # Those of before, whose programs LLVM compiles in two thirds of the time.
    "--xla_cpu_use_fusion_emitters=false",
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
  )
).strip()
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path.home() / ".cache" / "tsd_jax" / "xla"),
)
# The suite makes thousands of small programs, many of them in several files.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Tracing makes many objects, of which few are garbage.
gc.set_threshold(100_000, 20, 100)

# What a background job or nohup ignores, the commands under test would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
  signal.signal(signal.SIGHUP, signal.SIG_DFL)

import jax  # noqa: E402
import pytest  # noqa: E402

from tsd_jax.base import names  # noqa: E402

_skip = pytest.importorskip


# The extras that bring what a test may need, where that is not `test`.
_PROMISED = {
  "libtpu": "tpu",
  "playwright.sync_api": "browser",
  **dict.fromkeys(("latex2mathml", "mkdocs"), "docs"),
  # Part of no extra.
  **dict.fromkeys(("reasoning_gym", "lm_eval", "xllamacpp", "datasets")),
  **dict.fromkeys(("wandb", "trackio", "mlflow")),
  **dict.fromkeys(("profanity_check", "better_profanity", "vaderSentiment")),
}


def importorskip(name: str, *args, **options):
  """As pytest's; what launch/test.sh has installed must be there."""
  extras = os.environ.get("TSD_JAX_INSTALLED", "").split(",")
  promised = _PROMISED.get(name, "test")
  if promised in extras:
    return importlib.import_module(name)
  return _skip(name, *args, **options)


pytest.importorskip = importorskip
names.allow(["tests"])  # Configs that the tests write by hand name them.


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
  """Files with slow tests come first, then those with the most tests.

  What is run at last is short, and no worker waits long for another's file:
  launch/test.sh has xdist keep this order.
  """
  tests = collections.Counter(item.path for item in items)
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: (item.path not in slow, -tests[item.path]))


@pytest.fixture(autouse=True, scope="module")
def _programs_are_forgotten():
  """Drops compiled programs after each file.

  Each holds memory maps, of which Linux allows a process 65,530: the suite in
  one process passes that and XLA aborts. The cache on disk brings them back.
  """
  yield
  jax.clear_caches()


@pytest.fixture
def strict_ranks():
  """Arrays of other ranks are combined only where the code says so."""
  with jax.numpy_rank_promotion("raise"):
    yield
