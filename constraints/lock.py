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
EXTRAS = (
  *("browser", "cuda12", "docs", "interop", "notebook", "test", "text"),
  *("tpu", "verify"),
)
# torch as PyPI serves it, for CUDA, and the libraries that it then needs.
_TORCH = re.compile(r"torch==|nvidia-|cuda-|triton==")
# torch for CPUs, which is not on PyPI: an index of its own, or --find-links.
_TORCH_CPU = {
  "py311": (
    "torch==2.13.0+cpu \\\n    --hash=sha256:"
    "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b\n"
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
      interop = lists["interop"]
      lists["torch_cuda"] = [r for r in interop if _TORCH.match(r)]
      lists["interop"] = [r for r in interop if not _TORCH.match(r)]
      if lock in _TORCH_CPU:
        lists["torch_cpu"] = [_TORCH_CPU[lock]]
      folder = FOLDER / "hashes" / lock
      folder.mkdir(parents=True, exist_ok=True)
      for name, requirements in lists.items():
        (folder / f"{name}.txt").write_text("".join(requirements))


if __name__ == "__main__":
  main()
