"""Runs logged by services, each read back by what its maker reads it with."""

import json
import pathlib
import struct

import pytest

from tests import small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import ConfigError, UserError
from tsd_jax.run import trackers, tracking

SHOWN = [{
  "prompt": "1 2 = 3", "tree": "root\n└─ 1 | 2 <b>",
  "before": [{"text": "2 - 1", "reward": 0.25, "correct": False}],
  "after": [{"text": "1 + 2 | *", "reward": 1.0, "correct": True}],
}]  # fmt: skip
PAGE = "<!doctype html><p>a page</p>"
CONFIG = {"algorithm": "tsd", "optimizer": {"learning_rate": 3e-4}}


def row(step):
  found = {"step": step, "seconds": step / 2, "ledger": {"total": 100 * step}}
  if step:
    found |= {"reward": step / 7, "none": None}
  if step % 2 == 0:
    found["eval"] = {"mean@16": {"accuracy": step / 8, "stderr": 0.01}}
  return found


ROWS = [row(step) for step in range(5)]
FLAT = {
  4: {
    "seconds": 2.0,
    "ledger/total": 400.0,
    "reward": 4 / 7,
    "eval/mean@16/accuracy": 0.5,
    "eval/mean@16/stderr": 0.01,
  }
}


def test_a_row_is_its_numbers_by_flat_names():
  assert trackers.flat(ROWS[4]) == (4, FLAT[4])


def log_in_two_parts(service, folder):
  """A run that dies after iteration 2 and goes on behind that of 1."""
  one = tracking.start(service, folder, CONFIG, [], -1)
  one.write(ROWS[:3])
  one.close()
  two = tracking.start(service, folder, CONFIG, ROWS[:2], 2)
  two.write(ROWS[2:])
  two.finish(4, SHOWN, PAGE)
  two.close()


def expected(name):
  """(iteration, value) pairs of one flat name."""
  flat = [trackers.flat(row) for row in ROWS]
  return [(r.step, r.values[name]) for r in flat if name in r.values]


NAMES = ("reward", "ledger/total", "eval/mean@16/accuracy", "seconds")


def test_tensorboard_has_the_rows_once_and_the_tables(tmp_path):
  pytest.importorskip("tensorboardX", reason="needs the extra: test")
  pytest.importorskip("tensorboard", reason="needs the extra: test")
  from tensorboard.backend.event_processing import event_accumulator

  log_in_two_parts("tensorboard", tmp_path)
  read = event_accumulator.EventAccumulator(
    str(tmp_path / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}
  ).Reload()
  for name in NAMES:
    found = [(e.step, e.value) for e in read.Scalars(name.replace("@", "_"))]
    assert found == [(s, pytest.approx(v)) for s, v in expected(name)]

  def text(tag):
    (event,) = read.Tensors(tag)
    return event.tensor_proto.string_val[0].decode()

  table = text("samples/text_summary")
  # A model's own signs are no columns and no marks.
  assert r"| 1 2 = 3 | after | 1 + 2 \| \* | 1.0 | yes |" in table
  assert "    └─ 1 | 2 <b>" in text("trees/0/text_summary")
  assert json.loads(text("config/text_summary")) == CONFIG


def records(content):
  """Records of an offline file of W&B: LevelDB's log format, in 32 KiB blocks.

  A part of a record is 4 bytes of checksum, 2 of length and 1 of kind: whole,
  first, middle or last.
  """
  assert content[:4] == b":W&B"
  at, record = 7, b""
  while at + 7 <= len(content):
    if 2**15 - at % 2**15 < 7:  # No room for a head: zeros.
      at += 2**15 - at % 2**15
      continue
    length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
    record += content[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):
      yield record
      record = b""


def read_wandb(file):
  """Rows of the history in an offline file."""
  from wandb.proto import wandb_internal_pb2

  rows = []
  for content in records(file.read_bytes()):
    record = wandb_internal_pb2.Record()
    record.ParseFromString(content)
    if record.HasField("history"):
      rows.append({
        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
        for item in record.history.item
      })  # fmt: skip
  return rows


def test_wandb_goes_on_with_its_run_offline(tmp_path, monkeypatch):
  pytest.importorskip("wandb", reason="is no part of an extra that tests need")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  log_in_two_parts("wandb", tmp_path)
  files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
  assert len({f.name for f in files}) == 1  # One run, of one id.
  rows = [row for file in files for row in read_wandb(file)]
  for name in NAMES:
    found = [(r["_step"], r[name]) for r in rows if name in r]
    assert found == expected(name)
  (table,) = tmp_path.glob("wandb/offline-*/files/media/table/samples*.json")
  assert json.loads(table.read_text())["data"] == [
    ["1 2 = 3", "before", "2 - 1", 0.25, "no"],
    ["1 2 = 3", "after", "1 + 2 | *", 1.0, "yes"],
  ]
  (page,) = tmp_path.glob("wandb/offline-*/files/media/html/report*.html")
  assert page.read_text() == PAGE


def test_trackio_goes_on_with_its_run(tmp_path, monkeypatch):
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  pytest.importorskip("trackio", reason="is no part of an extra")
  from trackio.sqlite_storage import SQLiteStorage

  log_in_two_parts("trackio", tmp_path)
  (name,) = SQLiteStorage.get_runs(trackers.PROJECT)
  rows = SQLiteStorage.get_logs(trackers.PROJECT, name)
  for metric in NAMES:
    found = [(r["step"], r[metric]) for r in rows if metric in r]
    assert found == expected(metric)
  (table,) = [r["samples"]["_value"] for r in rows if "samples" in r]
  assert [r["response"] for r in table] == ["2 - 1", "1 + 2 | *"]
  assert any("report" in r for r in rows)


def test_mlflow_goes_on_with_its_run(tmp_path, monkeypatch):
  pytest.importorskip("mlflow", reason="is no part of an extra that tests need")
  import mlflow

  monkeypatch.chdir(tmp_path)
  mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
  log_in_two_parts("mlflow", tmp_path)
  client = mlflow.MlflowClient()
  place = client.get_experiment_by_name(trackers.PROJECT)
  (run,) = client.search_runs([place.experiment_id])
  assert run.info.status == "FINISHED"
  for name in NAMES:
    history = client.get_metric_history(run.info.run_id, name.replace("@", "_"))
    assert [(m.step, m.value) for m in history] == expected(name)

  def artifact(name):
    return pathlib.Path(client.download_artifacts(run.info.run_id, name))

  assert artifact("report.html").read_text() == PAGE
  assert json.loads(artifact("config.json").read_text()) == CONFIG
  table = json.loads(artifact("samples.json").read_text())
  assert table["data"][1] == ["1 2 = 3", "after", "1 + 2 | *", 1.0, "yes"]


class Broken:
  """A service that fails at one of its calls."""

  id = "broken"

  def __init__(self, at):
    self.at, self.calls = at, []

  def _call(self, name):
    self.calls.append(name)
    if name == self.at:
      raise ConnectionError("no route to host")

  def write(self, rows):
    self._call("write")

  def table(self, step, table):
    self._call("table")

  def page(self, step, name, text):
    self._call("page")

  def close(self):
    self._call("close")


@pytest.mark.parametrize("at", ["write", "table", "page", "close"])
def test_a_service_that_fails_is_told_of_once_and_left_out(
  at, caplog, tmp_path
):
  broken, whole = Broken(at), Broken("never")
  logs = tracking.Tracking(
    {"broken": broken, "whole": whole},
    {name: {"id": name, "step": -1} for name in ("broken", "whole")},
    tmp_path / tracking.FILE,
  )
  for r in ROWS:
    logs.write([r])
  logs.finish(4, SHOWN, PAGE)
  logs.close()
  (told,) = [r.getMessage() for r in caplog.records]
  assert "log=broken has failed (ConnectionError: no route to host)" in told
  assert broken.calls[-1] == at and broken.calls.count(at) == 1
  assert whole.calls == ["write"] * 5 + ["table"] * 2 + ["page", "close"]


def test_a_service_that_joins_late_gets_the_rows_before(tmp_path, monkeypatch):
  opened = []

  def open_fake(opening):
    opened.append(Fake(opening))
    return opened[-1]

  class Fake(Broken):
    def __init__(self, opening):
      super().__init__("never")
      self.id, self.known, self.steps = "my-run", opening.id, []

    def write(self, rows):
      self.steps += [row.step for row in rows]

  for name in ("early", "late"):
    service = trackers.Service(open_fake, "json")
    monkeypatch.setitem(trackers.SERVICES, name, service)
  tracking.start("early", tmp_path, CONFIG, [], -1).write(ROWS[:4])
  both = tracking.start("early,late", tmp_path, CONFIG, ROWS[:2], 3)
  both.write(ROWS[2:])
  first, early, late = opened
  assert first.known is None and first.steps == [0, 1, 2, 3]
  assert early.known == "my-run" and early.steps == [4]
  assert late.known is None and late.steps == [0, 1, 2, 3, 4]


def test_what_a_service_has_missed_is_sent_when_it_is_back(
  tmp_path, monkeypatch
):
  got = {"shaky": [], "steady": []}

  class Fake(Broken):
    def __init__(self, name, works):
      super().__init__("never")
      self.id, self.name, self.works = name, name, works

    def write(self, rows):
      if not self.works():
        raise ConnectionError("no route to host")
      got[self.name] += [row.step for row in rows]

  up = iter([True, False, True, True])
  for name, works in (("shaky", lambda: next(up)), ("steady", lambda: True)):
    service = trackers.Service(
      lambda opening, name=name, works=works: Fake(name, works), "json"
    )
    monkeypatch.setitem(trackers.SERVICES, name, service)
  one = tracking.start("shaky,steady", tmp_path, CONFIG, [], -1)
  for row in ROWS[:3]:  # The second is not taken; then it is left out.
    one.write([row])
  # Without one of them, and with it again.
  tracking.start("shaky", tmp_path, CONFIG, ROWS[:3], 2).write(ROWS[3:4])
  tracking.start("steady", tmp_path, CONFIG, ROWS[:4], 3).write(ROWS[4:])
  assert got == {"shaky": [0, 1, 2, 3], "steady": [0, 1, 2, 3, 4]}
  # A file of before.
  (tmp_path / tracking.FILE).write_text(json.dumps({"steady": "steady"}))
  tracking.start("steady", tmp_path, CONFIG, ROWS, 4)
  assert got["steady"] == [0, 1, 2, 3, 4]
  (tmp_path / tracking.FILE).write_text(json.dumps({"steady": {"id": 3}}))
  with pytest.raises(UserError, match="is damaged: delete it"):
    tracking.start("steady", tmp_path, CONFIG, ROWS, 4)


def test_what_is_not_installed_is_refused_with_the_command(monkeypatch):
  service = trackers.Service(trackers.WandB, "no_such_package")
  monkeypatch.setitem(trackers.SERVICES, "wandb", service)
  with pytest.raises(UserError, match="pip install no_such_package"):
    tracking.check("wandb")


def test_a_service_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
  def broken(opening):
    raise RuntimeError("no key\nfor this server")

  service = trackers.Service(broken, "json")
  monkeypatch.setitem(trackers.SERVICES, "wandb", service)
  with pytest.raises(
    UserError, match="no key for this server.*leave wandb out"
  ):
    tracking.start("wandb", tmp_path, CONFIG, [], -1)


def test_an_unknown_service_is_refused_with_the_config():
  with pytest.raises(ConfigError, match="log='wandbb' is unknown: use tensor"):
    config_lib.override(
      small_experiment.get_config(), {"log": "tensorboard,wandbb"}
    )


def test_trackio_is_refused_for_several_runs_in_a_program(monkeypatch):
  monkeypatch.setattr(trackers, "is_installed", lambda name: True)
  tracking.check("trackio")
  with pytest.raises(UserError, match="one run a process, and 5 train"):
    tracking.check("trackio", runs=5)
