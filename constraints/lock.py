"""Writes `constraints/hashes`: what each extra installs, with SHA-256 sums.

pip install uv && python constraints/lock.py

Versions are those of `py311.txt` and `py313.txt`, the sums those of all files
that the package index has of them. The launch scripts install from here with
`--require-hashes`, the lists of several extras together.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parent
PYTHONS = {"py311": "3.11", "py313": "3.12"}  # The oldest that a file is for.
EXTRAS = ("test", "interop", "notebook", "text", "tpu", "cuda12")
# The libraries that torch needs where the index serves its CUDA wheel.
_OF_TORCH = re.compile(r"nvidia-|cuda-|triton==")
# sha256 sums of torch's own wheels for CPUs, which are not on PyPI.
_CPU_WHEELS = {
  "torch==2.13.0": (
    "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
  )
}
_BUILD = "setuptools"  # Builds the project, and what comes without a wheel.


def locked(lock: str, words: list[str]) -> list[str]:
  """Resolves requirements to the lock's versions.

  Args:
    lock: one of `PYTHONS`.
    words: what they are, as uv takes it.

  Returns:
    A requirement with its sums, over several lines, each.
  """
  line = [
    *(sys.executable, "-m", "uv", "pip", "compile", *words),
    *("--universal", f"--python-version={PYTHONS[lock]}"),
    *("--constraint", str(FOLDER / f"{lock}.txt"), "--generate-hashes"),
    *("--no-header", "--no-annotate", "--index-strategy=unsafe-best-match"),
    "--quiet",
  ]
  done = subprocess.run(line, check=True, capture_output=True, text=True)
  return re.findall(r"^\S.*(?:\n +.*)*\n", done.stdout, re.MULTILINE)


def with_cpu_wheels(requirement: str) -> str:
  """Adds the sums of wheels that are not on PyPI."""
  for sum in _CPU_WHEELS.get(requirement.split()[0], ()):
    requirement = requirement.rstrip() + f" \\\n    --hash=sha256:{sum}\n"
  return requirement


def main() -> None:
  """Writes a file for every Python and extra."""
  project = str(FOLDER.parent / "setup.py")
  with tempfile.TemporaryDirectory() as scratch:
    build = pathlib.Path(scratch) / "build.in"
    build.write_text(_BUILD + "\n")
    for lock in PYTHONS:
      base = locked(lock, [project])
      lists = {"build": locked(lock, [str(build)]), "base": base}
      for extra in EXTRAS:
        whole = locked(lock, [project, f"--extra={extra}"])
        lists[extra] = [r for r in whole if r not in base]
      lists["torch_cuda"] = [r for r in lists["interop"] if _OF_TORCH.match(r)]
      lists["interop"] = [
        with_cpu_wheels(r) for r in lists["interop"] if not _OF_TORCH.match(r)
      ]
      folder = FOLDER / "hashes" / lock
      folder.mkdir(parents=True, exist_ok=True)
      for name, requirements in lists.items():
        (folder / f"{name}.txt").write_text("".join(requirements))


if __name__ == "__main__":
  main()
