"""Paths that people name."""

import pathlib

import pytest

from tsd_jax.base import paths
from tsd_jax.base.errors import UserError


def test_a_path_is_what_was_named(tmp_path):
  assert paths.named(str(tmp_path)) == tmp_path
  assert paths.named("not/there") == pathlib.Path("not/there")
  assert paths.named("~/x") == pathlib.Path.home() / "x"


@pytest.mark.parametrize("name", ["9" * 300, "/" + "a/" * 3000])
def test_what_the_system_cannot_name_is_refused_in_a_short_line(name):
  with pytest.raises(UserError, match="is no path: ") as info:
    paths.named(name)
  assert len(str(info.value)) < 140


@pytest.mark.parametrize("name", ["gs://bucket/run", "s3://b", "file:///tmp/x"])
def test_an_address_is_no_folder_of_that_name(name):
  with pytest.raises(UserError, match="is an address: mount it"):
    paths.named(name)
