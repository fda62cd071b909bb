"""launch/gpu.sh where there is no GPU."""

import os
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_a_machine_without_a_driver_is_told_so(tmp_path):
  tools = tmp_path / "bin"
  tools.mkdir()
  for name in ("bash", "dirname"):
    (tools / name).symlink_to(shutil.which(name))
  done = subprocess.run(
    ["bash", str(ROOT / "launch" / "gpu.sh"), str(tmp_path / "out")],
    env=os.environ | {"PATH": str(tools), "TSD_JAX_VENV": str(tmp_path / "v")},
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 1
  assert "no NVIDIA driver here" in done.stderr
  # Before anything is installed or written.
  assert not (tmp_path / "v").exists() and not (tmp_path / "out").exists()
