"""Memory in large pages: scripts ask for it, a training says if none did."""

import io
import os
import pathlib
import shutil
import subprocess
import time

import jax
import pytest

from tsd_jax.base import large_pages, progress
from tsd_jax.run import train

LAUNCH = pathlib.Path(__file__).resolve().parent.parent / "launch"
ON = "glibc.malloc.hugetlb=1"


def hint(tunables, system="linux", libc="glibc"):
  return large_pages.hint({"GLIBC_TUNABLES": tunables}, system, libc)


def test_a_process_without_large_pages_is_told_how_to_have_them():
  line = large_pages.hint({}, "linux", "glibc")
  assert f"GLIBC_TUNABLES={ON} " in line and "\n" not in line
  # With what is set already.
  assert f"GLIBC_TUNABLES=glibc.malloc.check=1:{ON} " in hint(
    "glibc.malloc.check=1"
  )
  assert hint("glibc.malloc.hugetlb_size=1")


@pytest.mark.parametrize("value", ["0", "1", "2"])
def test_whoever_has_decided_is_told_nothing(value):
  assert not hint(f"glibc.malloc.hugetlb={value}")
  assert not hint(f"glibc.malloc.check=1:glibc.malloc.hugetlb={value}")


def test_other_systems_are_told_nothing():
  assert not hint("", system="darwin", libc="")
  assert not hint("", libc="")  # musl


def test_an_accelerator_takes_no_notice(monkeypatch):
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
  monkeypatch.setattr(train.platform, "libc_ver", lambda: ("glibc", "2"))
  monkeypatch.setattr(train.sys, "platform", "linux")
  for backend, said in ("cpu", True), ("gpu", False), ("tpu", False):
    monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
    assert bool(train._large_pages()) is said


def test_a_process_says_it_once(monkeypatch):
  monkeypatch.setattr(progress.Progress, "_said", set())
  stream = io.StringIO()
  for _ in range(2):  # Two runs.
    bar = progress.Progress(1, 0, stream)
    bar.say("memory")
    bar.say("pages", once=True)
    bar.say("", once=True)
  assert stream.getvalue() == "memory\npages\nmemory\n"


@pytest.mark.parametrize(
  ("given", "wanted"),
  [
    (None, ON),
    ("", ON),
    ("glibc.malloc.check=1", f"glibc.malloc.check=1:{ON}"),
    ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ("a.b=1:glibc.malloc.hugetlb=2", "a.b=1:glibc.malloc.hugetlb=2"),
  ],
)
def test_the_shell_adds_the_tunable_where_nobody_has_decided(given, wanted):
  environment = os.environ | (
    {} if given is None else {"GLIBC_TUNABLES": given}
  )
  if given is None:
    environment.pop("GLIBC_TUNABLES", None)
  # A process that the shell starts must find it; the caller may be strict.
  line = f"set -euo pipefail; source {LAUNCH}/large_pages.sh"
  done = subprocess.run(
    ["bash", "-c", f"{line}; tsd_jax_large_pages; printenv GLIBC_TUNABLES"],
    env=environment, capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert done.stdout == wanted + "\n"


def script(file, text):
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text("#!/usr/bin/env bash\n" + text)
  file.chmod(0o755)


@pytest.mark.parametrize(
  "name", ["local.sh", "gpu.sh", "slurm.sbatch", "pod_worker.sh start"]
)
def test_every_script_that_trains_asks_for_them(tmp_path, name):
  root = tmp_path / "tsd_jax" / "src"
  shutil.copytree(LAUNCH, root / "launch")
  (root / "launch" / "setup_venv.sh").write_text(
    'tsd_jax_setup() { VENV="$ROOT/.venv"; }\n'
  )
  python = 'echo "python with $GLIBC_TUNABLES"'
  for place in root / ".venv", tmp_path / "tsd_jax" / "venv":
    script(place / "bin" / "python", python)
  script(tmp_path / "bin" / "nvidia-smi", "")
  script(tmp_path / "bin" / "srun", 'shift; "$@"')
  environment = os.environ | {
    "HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
  }  # fmt: skip
  environment.pop("GLIBC_TUNABLES", None)
  done = subprocess.run(
    ["bash", *f"launch/{name}".split()], env=environment, cwd=root,
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  said = done.stdout
  if "start" in name:
    rc = tmp_path / "tsd_jax" / "rc"
    deadline = time.monotonic() + 30
    while not rc.exists() and time.monotonic() < deadline:
      time.sleep(0.02)
    said = (tmp_path / "tsd_jax" / "log").read_text()
  assert f"python with {ON}\n" in said
  assert "python with \n" not in said
