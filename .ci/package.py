"""Builds sdist and wheel, installs the wheel, and tries it in another folder.

python .ci/package.py [DIR]   # leaves both in a folder

The wheel is built from the sdist, so that nothing is in one and not in the
other. It is installed into an empty environment, which borrows what the
project needs from the one that runs this: nothing is fetched.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("tsd_jax", "launch", "experiments")
DATA = (".html", ".safetensors", ".jsonl", ".yaml", ".typed")
NOT_DATA = {"launch/gke_jobset.yaml"}  # Of a checkout, as scripts are.
COMMANDS = (
  # What users import, and that it is the installed one.
  ["-c", "import tsd_jax, sys; assert tsd_jax.__file__.startswith(sys.prefix)"],
  ["-m", "launch.train", "--print_config"],
  ["-m", "launch.compare", "--print_config"],
  ["-m", "launch.evaluate", "--help"],
  ["-m", "launch.export", "--help"],
  ["-m", "launch.generate", "--help"],
  # The model that the default run starts from, and a problem of it.
  [
    "-c",
    "from experiments import countdown, text_example\n"
    "from tsd_jax.run import experiment\n"
    "run = countdown.get_config()\n"
    "experiment.initial_params(run)\n"
    "assert len(text_example.get_config().task.file)\n",
  ],
  # The page that shows trees.
  [
    "-c",
    "from tsd_jax.search import explorer; assert '<html' in explorer.page([])",
  ],
  # A chat template runs in a process of its own, which imports the package.
  [
    "-c",
    "from tsd_jax.models import text_limits\n"
    "assert text_limits.shared().render('{{ 1 + 1 }}', {}) == '2'\n",
  ],
)


def build(out: pathlib.Path) -> pathlib.Path:
  """Builds the sdist, and the wheel from what it holds; returns the wheel."""
  code = "import setuptools.build_meta as b; b.build_sdist({!r})"
  run([sys.executable, "-c", code.format(str(out))], ROOT)
  (sdist,) = out.glob("*.tar.gz")
  with tarfile.open(sdist) as archive:
    archive.extractall(out, filter="data")
  source = out / sdist.name.removesuffix(".tar.gz")
  own = (
    "--no-build-isolation",
    "--no-deps",
    "--no-index",
    f"--wheel-dir={out}",
  )
  run([sys.executable, "-m", "pip", "wheel", "-q", *own, str(source)], out)
  (wheel,) = out.glob("*.whl")
  for file in (sdist, wheel):
    print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")
  return wheel


def check_files(wheel: pathlib.Path) -> None:
  """Compares the wheel with the files of the checkout, both ways."""
  listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
  found = run([*listed, "--", *PACKAGES], ROOT).splitlines()
  wanted = {
    name
    for name in found
    if name.endswith((".py", *DATA)) and name not in NOT_DATA
  }
  with zipfile.ZipFile(wheel) as archive:
    names = {n for n in archive.namelist() if ".dist-info/" not in n}
  if wanted != names:
    sys.exit(
      f"the wheel lacks {sorted(wanted - names)} and has "
      f"{sorted(names - wanted)} besides: see package_data in setup.py"
    )


def install(wheel: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Installs the wheel into an empty environment; returns its interpreter."""
  run([sys.executable, "-m", "venv", "--without-pip", str(folder)], ROOT)
  python = folder / "bin" / "python"
  pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
  run([*pip, "--no-deps", "--no-index", str(wheel)], folder)
  # A path file of the borrowed folder is not read: that has our checkout.
  (borrowed,) = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
  where = run(
    [str(python), "-c", "import site; print(*site.getsitepackages())"], folder
  )
  (pathlib.Path(where.split()[0]) / "borrowed.pth").write_text(borrowed + "\n")
  return python


def run(command: list[str], folder: pathlib.Path) -> str:
  """Runs a command where no variable leads back to the checkout."""
  hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
  environment = {k: v for k, v in os.environ.items() if k not in hidden}
  done = subprocess.run(
    command, cwd=folder, env=environment | {"JAX_PLATFORMS": "cpu"},
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  # absl's --help ends with 1.
  if done.returncode != int(command[-1] == "--help"):
    sys.exit(f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}")
  return done.stdout


def main() -> None:
  """Builds, installs and tries."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    wheel = build(folder)
    check_files(wheel)
    python = install(wheel, folder / "environment")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for arguments in COMMANDS:
      run([str(python), *arguments], elsewhere)
    for file in folder.glob("tsd_jax-*.*") if sys.argv[1:] else ():
      if file.is_file():
        shutil.copy(file, sys.argv[1])
    print(f"{len(COMMANDS)} commands work in another folder")


if __name__ == "__main__":
  main()
