"""The environment that launch/ makes, and what it leaves alone."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETUP = f"ROOT={ROOT}; source {ROOT}/launch/setup_venv.sh\n"


def bash(script, folder):
  return subprocess.run(
    ["bash", "-c", SETUP + script], env={"TSD_JAX_VENV": str(folder)},
    capture_output=True, text=True, check=False,
  )  # fmt: skip


def test_an_environment_of_somebody_else_is_left_alone(tmp_path):
  (tmp_path / "pyvenv.cfg").touch()
  (tmp_path / "lib").mkdir()
  done = bash('PATH="/usr/bin:/bin"; tsd_jax_setup ""', tmp_path)
  assert done.returncode == 1 and (tmp_path / "lib").is_dir()
  assert "holds files that no script of launch/ has put there" in done.stderr


def test_an_update_that_fails_begins_from_nothing_no_more(tmp_path):
  """An index that cannot be reached for once costs no environment."""
  (tmp_path / "bin").mkdir()
  (tmp_path / "bin" / "python").symlink_to(sys.executable)
  stamp = tmp_path / ".tsd_jax_installed"
  version = f"{sys.version_info[0]}.{sys.version_info[1]}"
  stamp.write_text(f"{version}\nof another day\ntext\n")
  script = 'PATH="/usr/bin:/bin"; tsd_jax_install() { %s; }; tsd_jax_setup tpu'
  done = bash(script % "return 1", tmp_path)
  assert done.returncode == 1 and "pip could not install" in done.stderr
  done = bash(script % 'echo "extras $1"', tmp_path)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "bin" / "python").is_symlink()
  assert "extras text,tpu" in (tmp_path / "install.log").read_text()
  assert stamp.read_text().splitlines()[2] == "text,tpu"
  # Now it is ready: nothing is installed again.
  assert bash(script % "exit 9", tmp_path).returncode == 0
