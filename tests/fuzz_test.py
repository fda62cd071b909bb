"""Damaged and hostile files, spoilt by numbers, end in a line of text."""

import random
import shutil

import pytest

from experiments.benchmarks import fuzz, fuzz_inputs
from tsd_jax.base.errors import UserError

pytest.importorskip("tokenizers", reason="needs the extra: text")
pytest.importorskip("gguf", reason="needs the extra: text")


@pytest.mark.slow
def test_no_spoilt_input_ends_in_a_traceback_takes_long_or_much_memory():
  outcomes = fuzz.fuzz(2_000, seconds=120)
  assert len(outcomes) > 100
  assert [o for o in outcomes if o.what in fuzz.FAULTS] == [], fuzz.table(
    outcomes
  )
  assert {o.what for o in outcomes} == {fuzz.ACCEPTED, fuzz.REFUSED}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({*fuzz_inputs.KINDS} - {"flags"}))
def test_what_is_not_spoilt_is_accepted(whole, tmp_path, kind):
  shutil.copytree(whole / kind, tmp_path / kind)
  for seed in range(8):  # Which reads the parts of a run's folder in turn.
    try:
      fuzz_inputs.read(tmp_path / kind, kind, random.Random(seed))
    except UserError as error:
      # A run that was trained with other settings is no damage.
      assert "other settings" in str(error)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  fuzz_inputs.write_all(folder)
  return folder


def test_a_number_spoils_always_in_the_same_way(whole, tmp_path):
  for number in range(len(fuzz_inputs.KINDS)):
    kind, found = fuzz.kind_of(number), []
    for name in ("a", "b"):
      folder = tmp_path / f"{name}{number}"
      shutil.copytree(whole / kind, folder)
      fuzz_inputs.spoil(folder, kind, random.Random(number))
      found.append(
        {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}
      )
    assert found[0] == found[1]


def test_errors_that_are_not_of_the_project_are_counted(
  whole, tmp_path, monkeypatch
):
  def fail(error):
    def read(*_):
      raise error

    monkeypatch.setattr(fuzz_inputs, "read", read)
    return fuzz.read_one(whole, tmp_path / str(error), 0)

  assert fail(UserError("x")).what == fuzz.REFUSED
  for error in (KeyError("y"), RecursionError("z"), SystemExit(3)):
    outcome = fail(error)
    assert outcome.what == fuzz.TRACEBACK and repr(error) in outcome.detail
  assert "1          0          0" in fuzz.table([outcome])
