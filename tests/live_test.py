"""What a run shows while it goes on: its page and its problems."""

import json

import numpy as np
import pytest

from tests.report_test import write_run
from tsd_jax.base.errors import UserError
from tsd_jax.run import live, problems, report

FIRST, NOW = {"greedy": np.array([0.0, 1.0])}, {"greedy": np.array([1.0, 0.25])}


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands, unless it is moved."""
  now = [1_000.0]
  monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
  return now


def test_a_page_takes_a_hundredth_of_the_time(tmp_path, clock, monkeypatch):
  written = []

  def write(*args):
    written.append(clock[0])
    clock[0] += 0.5  # A page of half a second.

  monkeypatch.setattr(report, "write", write)
  shown = live.Live("tsd", tmp_path, "mean@16")
  shown.refresh(evaluated=True)
  end = clock[0] + 1_000
  while clock[0] < end:
    clock[0] += 1
    shown.refresh(evaluated=True)
  assert len(written) == 20 and min(np.diff(written)) > 50


def test_a_page_without_evaluations_is_written_when_it_is_old(
  tmp_path, clock, monkeypatch
):
  written = []
  monkeypatch.setattr(report, "write", lambda *args: written.append(clock[0]))
  shown = live.Live("tsd", tmp_path, "mean@16")
  for _ in range(300):
    shown.refresh(evaluated=False)
    clock[0] += 1
  assert written == [1_000, 1_120, 1_240]


def test_an_evaluation_that_comes_too_soon_is_shown_soon(
  tmp_path, clock, monkeypatch
):
  written = []

  def write(*args):
    written.append(clock[0])
    clock[0] += 0.25

  monkeypatch.setattr(report, "write", write)
  shown = live.Live("tsd", tmp_path, "mean@16")
  shown.refresh(evaluated=True)
  shown.refresh(evaluated=True)
  for _ in range(60):
    clock[0] += 1
    shown.refresh(evaluated=False)
  assert written == [1_000, pytest.approx(1_025, abs=1.5)]


def test_a_page_that_fails_is_told_once_and_ends_nothing(
  tmp_path, clock, monkeypatch, caplog
):
  def fail(*args):
    raise ZeroDivisionError("a page")

  monkeypatch.setattr(report, "write", fail)
  shown = live.Live("tsd", tmp_path, "mean@16")
  for _ in range(3):
    shown.refresh(evaluated=True)
    clock[0] += 1_000
  (told,) = [r.getMessage() for r in caplog.records]
  assert "ZeroDivisionError: a page" in told and "training goes on" in told


def test_the_page_is_that_of_a_run_that_goes_on(tmp_path):
  folder = write_run(tmp_path / "a", [0.1, 0.2])
  (folder / "samples.json").unlink()
  live.Live("tsd", folder, "mean@16").refresh(evaluated=True)
  assert "The run has not ended" in (folder / "report.html").read_text()


def test_problems_are_kept_of_the_first_and_the_last_evaluation(tmp_path):
  asked = []

  def ask():
    asked.append(1)
    return ["1 2 = 3", "x" * 1_000], np.array([0, 0])

  shown = live.Live("tsd", tmp_path, "greedy")
  shown.keep("validation", 0, FIRST, ask)
  shown.keep("validation", 5, {"greedy": np.array([0.5, 0.5])}, ask)
  shown.keep("validation", 10, NOW, ask)
  found = problems.read(tmp_path)
  assert len(asked) == 1 and found.split == "validation"
  assert found.prompts == ["1 2 = 3", "x" * problems.TEXT]
  assert found.group_P.tolist() == [0, 0] and list(found.solved) == [0, 10]
  assert found.solved[0]["greedy"].tolist() == [0, 1]
  assert found.last["greedy"].tolist() == [1, 0.25]


def test_damaged_problems_are_named(tmp_path):
  assert problems.read(tmp_path) is None
  whole = {
    "split": "test", "prompts": ["a"], "families": [0],
    "solved": {"0": {"greedy": [1.0]}},
  }  # fmt: skip
  for odd in (
    {"prompts": 3}, {"families": [0, 1]}, {"solved": {}}, {"families": None},
    {"solved": {"x": {}}}, {"solved": {"0": {"greedy": [True]}}},
    {"solved": {"0": {"greedy": [1.0, 2.0]}}}, {"prompts": [5]},
  ):  # fmt: skip
    (tmp_path / "problems.json").write_text(json.dumps(whole | odd))
    with pytest.raises(UserError, match=r"problems\.json is damaged"):
      problems.read(tmp_path)
