"""A run's folder that is damaged, or cannot be one."""

import errno
import json
import os

import pytest

from tests import small_experiment
from tsd_jax.base import config_json, outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.run import directory, load

LEDGER = {"search": 2, "total": 2}
ROW = {
  "step": 1, "seconds": 2.5, "ledger": LEDGER, "loss": 0.5,
  "eval": {"mean@2": {"accuracy": 0.5, "stderr": 0.1}},
}  # fmt: skip


def write_rows(folder, *rows, end="\n"):
  text = "\n".join(json.dumps(row) for row in rows)
  (folder / directory.METRICS).write_text(text + end)


def test_whole_rows_are_read_as_they_stand(tmp_path):
  rows = [{"step": 0, "ledger": LEDGER}, ROW, ROW | {"host_rewards": {"a": 1}}]
  write_rows(tmp_path, *rows)
  assert directory.read_rows(tmp_path) == rows


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"ledger": None}, "line 2: ledger.total is None"),
    ({"ledger": {"search": 1}}, "line 2: ledger.total is None"),
    ({"ledger": {"total": -1}}, "ledger.total is -1"),
    ({"ledger": {"total": "x"}}, "ledger.total is a text 'x'"),
    ({"ledger": [1]}, "line 2: ledger.total is None"),
    ({"step": 1.5}, "line 2: step is 1.5"),
    ({"step": None}, "line 2: step is None"),
    ({"eval": 5}, "line 2 is no row of a run"),
    ({"eval": {"mean@2": 5}}, "eval.mean@2.accuracy is None"),
    ({"eval": {"mean@2": {"accuracy": "1"}}}, "eval.mean@2.accuracy is a text"),
    ({"seconds": None}, "line 2: seconds is None, no number"),
  ],
)
def test_rows_that_lack_what_readers_need_are_named(tmp_path, change, message):
  write_rows(tmp_path, ROW, ROW | change)
  for call in (
    lambda: directory.read_rows(tmp_path),
    lambda: directory.keep_rows(tmp_path / directory.METRICS, 9),
  ):
    with pytest.raises(UserError, match=message):
      call()


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"\x93NUMPY\xff", "line 1 is damaged .no UTF-8"),
    (b"[]\n", "line 1 is no row"),
    (b"{\n{}\n", "line 1 is damaged"),
    (b"", "holds no rows"),
  ],
)
def test_metrics_that_are_none_are_refused(tmp_path, content, message):
  (tmp_path / directory.METRICS).write_bytes(content)
  with pytest.raises(UserError, match=rf"metrics\.jsonl.*{message}"):
    directory.read_rows(tmp_path)


def test_only_a_half_written_last_row_is_dropped(tmp_path):
  file = tmp_path / directory.METRICS
  rows = [ROW | {"step": step} for step in range(4)]
  write_rows(tmp_path, *rows, end='\n{"step": 4, "los')
  assert directory.read_rows(tmp_path) == rows  # A run may be at it.
  assert directory.newest_step(file) == 3
  directory.keep_rows(file, 2)
  assert directory.read_rows(tmp_path) == rows[:3]
  directory.keep_rows(file, -1)
  assert file.read_text() == ""
  directory.keep_rows(tmp_path / "none", 0)


def test_a_long_run_has_more_rows_than_files_of_others_may(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(outside_files, "VALUES", 9)
  rows = [ROW | {"step": step} for step in range(10)]
  write_rows(tmp_path, *rows)
  assert directory.read_rows(tmp_path) == rows
  with pytest.raises(UserError, match="values of JSON, more than 9"):
    outside_files.read_lines(tmp_path / directory.METRICS, values=9)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("[]", "names no task"),
    ("5", "names no task"),
    ("{}", "names no task"),
    ('{"task": 3}', "names no task"),
    ("{", "is damaged"),
    ("[" * 9_999, "is damaged .more than"),
    ('{"seed": ' + "1" * 5_000 + "}", "5,000 digits"),
  ],
)
def test_a_config_that_is_none_is_refused(tmp_path, content, message):
  (tmp_path / directory.CONFIG).write_text(content)
  config = small_experiment.get_config()
  for call in (
    lambda: load.read_config(tmp_path),
    lambda: directory.prepare(config, tmp_path),
  ):
    with pytest.raises(UserError, match=rf"config\.json.*{message}"):
      call()


@pytest.mark.parametrize("content", ["[]", "5", "{"])
def test_digests_that_are_none_are_refused(tmp_path, content):
  (tmp_path / directory.DATA).write_text(content)
  with pytest.raises(UserError, match=r"data\.json.*damaged"):
    directory.prepare(small_experiment.get_config(), tmp_path, {"train": "0"})


def test_a_whole_config_is_read(tmp_path):
  config = small_experiment.get_config()
  (tmp_path / directory.CONFIG).write_text(config_json.to_json(config))
  assert load.read_config(tmp_path) == config


def test_what_cannot_be_a_folder_of_a_run_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  (tmp_path / "dangling").mkdir()
  (tmp_path / "dangling" / directory.CHECKPOINTS).symlink_to(tmp_path / "gone")
  (tmp_path / "fifo").mkdir()
  os.mkfifo(tmp_path / "fifo" / ".lock")
  for name in ("file", "file/below", "dangling", "fifo"):
    with pytest.raises(UserError, match=f"workdir=.*{name} cannot be written"):
      with directory.sole_writer(tmp_path / name):
        pass
  # As on a file system that is only read.
  with pytest.raises(UserError, match="/proc/run cannot be written"):
    with directory.sole_writer(directory.pathlib.Path("/proc/run")):
      pass


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
  """Nobody else trains there for all that is known."""

  def unknown(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

  monkeypatch.setattr(directory.fcntl, "flock", unknown)
  with directory.sole_writer(tmp_path / "a"):
    assert "knows no locks (Function not implemented)" in caplog.text


def test_a_folder_has_one_writer(tmp_path):
  with directory.sole_writer(tmp_path / "a" / "b"):
    with pytest.raises(UserError, match="another process trains in"):
      with directory.sole_writer(tmp_path / "a" / "b"):
        pass
  with directory.sole_writer(tmp_path / "a" / "b"):
    pass
