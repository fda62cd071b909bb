"""The sums that the launch scripts install by belong to the locked versions."""

import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "constraints"
EXTRAS = {
  *("browser", "cuda12", "docs", "interop", "notebook", "test", "text"),
  *("tpu", "verify"),
}


def name_of(package):
  return re.sub(r"[-_.]+", "-", package).lower()


def versions(text):
  found = re.findall(r"^([\w.-]+)==([\w.+]+)", text, re.MULTILINE)
  return {name_of(package): version for package, version in found}


@pytest.mark.parametrize("lock", ["py311", "py313"])
def test_every_locked_package_has_sums_of_its_version(lock):
  pins = versions((FOLDER / f"{lock}.txt").read_text())
  hashed = {}
  for file in (FOLDER / "hashes" / lock).glob("*.txt"):
    text = file.read_text()
    requirements = re.findall(r"^\S.*(?:\n +.*)*\n", text, re.MULTILINE)
    assert "".join(requirements) == text
    for requirement in requirements:
      assert re.search(r" --hash=sha256:[0-9a-f]{64}$", requirement.rstrip())
      ((package, version),) = versions(requirement).items()
      hashed.setdefault(package, set()).add(version.partition("+")[0])
  for package, version in pins.items():
    assert hashed[package] == {version}, package
  # Of another platform, or of the extra that the lock is silent about.
  others = {p for p in hashed.keys() - pins.keys() if "-cu12" not in p}
  assert len(others) < 15, others


def test_what_is_installed_of_a_list_is_checked():
  setup = FOLDER.parent / "launch" / "setup_venv.sh"
  text = setup.read_text().replace("\\\n", " ")
  lists = re.findall(r"^.*-r \"\$LOCK.*$", text, re.MULTILINE)
  assert len(lists) >= 4
  for line in lists:
    # Lists are added to a command that checks sums, or checked there and then.
    assert (
      '"${checked[@]}"' in line
      or "checked+=" in line
      or ("--require-hashes" in line)
    ), line


@pytest.mark.parametrize("lock", ["py311", "py313"])
def test_there_is_a_list_for_every_extra(lock):
  names = {file.stem for file in (FOLDER / "hashes" / lock).glob("*.txt")}
  assert names >= {"base", "build", "torch_cuda", *EXTRAS}
  setup = (FOLDER.parent / "setup.py").read_text()
  listed = setup[setup.index("extras_require") :]
  assert set(re.findall(r'^    "(\w+)":', listed, re.MULTILINE)) == EXTRAS
