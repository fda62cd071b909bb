"""Checkpoints on storage that fails: a limit on file sizes is a full disk."""

import contextlib
import dataclasses
import errno
import os
import pathlib
import resource
import time

import jax
import numpy as np
import pytest

from tests import small_experiment
from tsd_jax.base.errors import UserError
from tsd_jax.parallel import sharding
from tsd_jax.run import checkpoint, directory


@contextlib.contextmanager
def full_disk():
  """No file may grow beyond a size that the tests' own output stays below."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def arrays(step):
  rng = np.random.default_rng(step)
  return {"x": jax.numpy.asarray(rng.normal(size=(512, 512)), "float32")}


def wait(checkpointer):
  while checkpointer._manager.is_saving_in_progress():
    time.sleep(0.01)
  return checkpointer.behind()


def test_a_failed_save_is_told_and_the_next_one_counts(tmp_path, caplog):
  checkpointer = checkpoint.Checkpointer(tmp_path)
  checkpointer.save(1, arrays(1), {"step": 1})
  assert not wait(checkpointer)
  with full_disk():
    checkpointer.save(2, arrays(2), {"step": 2})
    assert wait(checkpointer)
  assert "iteration 2 was not written" in caplog.text
  # What it left behind takes no room.
  names = {f.name for f in (tmp_path / "checkpoints").iterdir()}
  assert names == {"1"}
  assert checkpointer.behind()  # Until one succeeds.
  checkpointer.save(3, arrays(3), {"step": 3})
  assert not wait(checkpointer)
  checkpointer.close()
  again = checkpoint.Checkpointer(tmp_path)
  restored, record = again.restore(arrays(0))
  assert record == {"step": 3}
  np.testing.assert_array_equal(restored["x"], arrays(3)["x"])
  again.close()


def test_what_cannot_be_read_stays_where_nothing_can(tmp_path, caplog):
  """It may be of other code, or the fault of the moment."""
  checkpointer = checkpoint.Checkpointer(tmp_path)
  for step in (1, 2):
    checkpointer.save_now(step, arrays(step), {"step": step})
  other = arrays(0) | {"y": arrays(0)["x"]}
  with pytest.raises(UserError, match=r"damaged, or of other code .steps .2, "):
    checkpointer.restore(other)
  assert checkpointer.steps() == [2, 1]
  assert checkpointer.record() == {"step": 2}
  _, record = checkpointer.restore(arrays(0))
  assert record == {"step": 2}
  # One that is passed over goes once an older one has been read.
  for file in (tmp_path / "checkpoints" / "2").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  _, record = checkpointer.restore(arrays(0))
  assert record == {"step": 1} and checkpointer.steps() == [1]
  checkpointer.close()


def test_the_last_save_is_tried_again_and_its_failure_is_an_error(tmp_path):
  checkpointer = checkpoint.Checkpointer(tmp_path)
  checkpointer.save_now(1, arrays(1), {"step": 1})
  with full_disk(), pytest.raises(UserError, match="iteration 2 could be"):
    checkpointer.save_now(2, arrays(2), {"step": 2}, pause=0.01)
  assert checkpointer.steps() == [1]
  checkpointer.save_now(2, arrays(2), {"step": 2})
  assert checkpointer.steps() == [2, 1]
  checkpointer.close()


def test_rows_wait_for_room(tmp_path, caplog):
  file = tmp_path / "metrics.jsonl"
  log = directory.RowLog(file)
  ledger = {"ledger": {"total": 0}}
  log.write([{"step": 1} | ledger])
  with full_disk():
    log.write([{"step": 2, "long": "x" * 300_000} | ledger])
    log.write([{"step": 3} | ledger])
    with pytest.raises(UserError, match="could not be written"):
      log.finish()
  assert "kept and tried again" in caplog.text
  log.write([{"step": 4} | ledger])
  log.finish()
  assert [row["step"] for row in directory.read_rows(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EROFS])
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(
  tmp_path, monkeypatch, fault
):
  file = tmp_path / "samples.json"
  directory.write_whole(file, "old")

  def full(*_, **__):
    raise OSError(fault, os.strerror(fault))

  for broken in ("write_text", "replace"):
    with monkeypatch.context() as patched:
      owner = pathlib.Path if broken == "write_text" else os
      patched.setattr(owner, broken, full)
      with pytest.raises(
        UserError, match=f"samples.json.*{os.strerror(fault)}"
      ):
        directory.write_whole(file, "new")
    assert [f.name for f in tmp_path.iterdir()] == ["samples.json"]
    assert file.read_text() == "old"
  with monkeypatch.context() as patched:
    patched.setattr(pathlib.Path, "mkdir", full)
    with pytest.raises(UserError, match="free some space"):
      directory.make(tmp_path / "run")


def test_a_folder_that_cannot_be_one_is_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "nowhere" / "x")
  with pytest.raises(UserError, match="file.* cannot be written"):
    directory.make(tmp_path / "file")
  with pytest.raises(UserError, match="workdir=.*file cannot be written"):
    with directory.sole_writer(tmp_path / "file"):
      pass
  with pytest.raises(UserError, match="checkpoints cannot be written"):
    checkpoint.Checkpointer(tmp_path / "run")


def test_a_full_disk_is_told_once_and_closing_is_quiet(tmp_path, caplog):
  checkpointer = checkpoint.Checkpointer(tmp_path)
  with full_disk():
    for step in (1, 2, 3):
      checkpointer.save(step, arrays(step), {"step": step})
      assert wait(checkpointer)
    checkpointer.save(4, arrays(4), {"step": 4})
    checkpointer.close()
  assert caplog.text.count("was not written") == 1
  assert "iteration 1 was not written" in caplog.text
  assert not list((tmp_path / "checkpoints").iterdir())


def test_a_checkpoint_is_read_onto_any_mesh(tmp_path):
  rng = np.random.default_rng(0)
  tree = {
    "gate_LDF": rng.normal(size=(2, 8, 4)).astype("float32"),
    "embedding_VD": rng.normal(size=(16, 8)).astype("float32"),
  }
  meshes = [
    sharding.make_mesh(sharding.MeshConfig(**axes))
    for axes in (dict(slice=2, fsdp=2, tensor=2), dict(fsdp=4), dict(data=1))
  ]
  checkpointer = checkpoint.Checkpointer(tmp_path)
  checkpointer.save_now(1, sharding.place(tree, meshes[0]), {})
  for mesh in meshes:
    like = sharding.place(jax.tree.map(np.zeros_like, tree), mesh)
    arrays, _ = checkpointer.restore(like)
    for name, a in arrays.items():
      np.testing.assert_array_equal(a, tree[name])
      assert a.sharding == like[name].sharding
  checkpointer.close()


def test_a_folder_may_go_on_with_another_mesh_only(tmp_path):
  config = small_experiment.get_config()
  directory.prepare(config, tmp_path)
  elsewhere = sharding.MeshConfig(data=2, tensor=2)
  directory.prepare(dataclasses.replace(config, mesh=elsewhere), tmp_path)
  with pytest.raises(UserError, match="seed: saved 0, now 1"):
    directory.prepare(dataclasses.replace(config, seed=1), tmp_path)


def test_all_processes_go_back_to_what_all_can_read(tmp_path, monkeypatch):
  checkpointer = checkpoint.Checkpointer(tmp_path)
  for step in (1, 2):
    checkpointer.save_now(step, arrays(step), {"step": step})
  others = iter([True, False])  # Another host's copy of the newest is damaged.
  monkeypatch.setattr(
    checkpoint.processes, "any_says", lambda here: here or next(others)
  )
  _, record = checkpointer.restore(arrays(0))
  assert record == {"step": 1} and checkpointer.steps() == [1]
  checkpointer.close()


def test_a_lost_process_costs_no_checkpoint(tmp_path, monkeypatch):
  checkpointer = checkpoint.Checkpointer(tmp_path)
  checkpointer.save_now(1, arrays(1), {"step": 1})

  def lost(*_, **__):
    raise RuntimeError("connection reset by peer")

  # Orbax's own agreement fails as ours does.
  monkeypatch.setattr(checkpointer._manager, "restore", lost)
  monkeypatch.setattr(checkpoint.processes, "any_says", lost)
  with pytest.raises(RuntimeError, match="connection reset"):
    checkpointer.restore(arrays(0))
  assert checkpointer.steps() == [1]
  checkpointer.close()
