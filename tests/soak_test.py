"""A killed run loses nothing, and a long one does not grow."""

import json

import pytest

from experiments.benchmarks import soak

CONFIG = "tests/small_experiment.py"


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_loses_nothing(tmp_path):
  found = soak.kills(CONFIG, 2, 0, tmp_path)
  assert found == dict(kills=2, rows=121, lost=0, different=0, parameters=0)


@pytest.mark.slow
def test_memory_stays_as_it_is(tmp_path):
  found = soak.growth(CONFIG, 500, tmp_path)
  assert found["iterations"] == 500
  assert 0 < found["ended"] < 1.02 * found["settled"]


def test_rows_that_are_lost_or_differ_are_counted(tmp_path):
  def write(name, rows):
    (tmp_path / name).mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name / "metrics.jsonl").write_text(text + '{"step": ')
    return soak.rows(tmp_path / name)

  whole = [dict(step=i, loss=i / 2, seconds=i) for i in range(4)]
  calm = write("calm", whole)
  assert calm == [dict(step=i, loss=i / 2) for i in range(4)]
  later = [row | dict(seconds=9) for row in whole]
  assert soak.compare(calm, write("same", later)) == (0, 0)
  assert soak.compare(calm, write("lost", later[:2])) == (2, 0)
  assert soak.compare(calm, write("twice", [*later, later[1]])) == (1, 0)
  later[2] = later[2] | dict(loss=7)
  assert soak.compare(calm, write("other", later)) == (0, 1)
