"""What launch/test.sh has installed is not skipped for being missing."""

import sys

import pytest


@pytest.mark.parametrize("name", ["no_such_module", "json"])
def test_nothing_that_was_promised_is_skipped(monkeypatch, name):
  monkeypatch.setenv("TSD_JAX_INSTALLED", "test,interop")
  if name == "json":
    assert pytest.importorskip(name).loads("1") == 1
  else:
    with pytest.raises(ModuleNotFoundError):
      pytest.importorskip(name)


def test_what_was_not_installed_is_skipped(monkeypatch):
  monkeypatch.setenv("TSD_JAX_INSTALLED", "")
  with pytest.raises(pytest.skip.Exception):
    pytest.importorskip("no_such_module")


def test_the_compiler_for_tpus_is_asked_for_alone(monkeypatch):
  monkeypatch.setenv("TSD_JAX_INSTALLED", "test,tpu")
  monkeypatch.setitem(sys.modules, "libtpu", None)
  with pytest.raises(ModuleNotFoundError):
    pytest.importorskip("libtpu")
  monkeypatch.setenv("TSD_JAX_INSTALLED", "test")
  with pytest.raises(pytest.skip.Exception):
    pytest.importorskip("libtpu")
