"""Where imported parameters lie, and how much memory their import takes."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.published import LLAMA, SHAPES, export, make
from tsd_jax.models import assemble, pretrained, transformer, weights

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_shapes_are_those_of_a_created_model():
  for config in SHAPES.values():
    graphdef, params = transformer.create(config, 0)
    structure, shapes = transformer.abstract(config)
    assert structure == graphdef
    assert jax.tree.structure(shapes) == jax.tree.structure(params)


def test_fresh_value_outputs_are_those_of_a_created_model():
  flat = weights.flatten(transformer.create(LLAMA, 3)[1])
  heads = assemble.fresh_heads(LLAMA, 3)
  assert set(heads) == {name for name in flat if name.startswith("value_")}
  for name, array in heads.items():
    np.testing.assert_allclose(array, flat[name], atol=1e-6)


def test_every_device_receives_its_part(tmp_path):
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))

  def placement(name, shape):
    """The last axis over the devices: never the one that layers stack on."""
    del name
    axes = (None,) * (len(shape) - 1) + ("model",)
    return NamedSharding(
      mesh, PartitionSpec(*(axes if shape[-1] % 8 == 0 else ()))
    )

  _, _, plain = pretrained.load(folder)
  _, _, params = pretrained.load(folder, placement=placement)
  plain, params = weights.by_name(plain), weights.by_name(params)
  split = 0
  for name, leaf in params.items():
    assert leaf.sharding.is_equivalent_to(
      placement(name, leaf.shape), leaf.ndim
    ), name
    split += leaf.addressable_shards[0].data.size < leaf.size
    np.testing.assert_array_equal(leaf, plain[name], name)
  assert split > 10


MEASURE = """
import json, sys, threading, time
from tsd_jax.models import pretrained, weights

def resident():
  # Memory that is no file's: pages of a mapped file can be dropped.
  for line in open("/proc/self/status"):
    if line.startswith("RssAnon"):
      return int(line.split()[1]) * 1024

pretrained.load(sys.argv[1])  # Compiles; a small model.
before, peak, done = resident(), 0, False

def watch():
  global peak
  while not done:
    peak = max(peak, resident())
    time.sleep(0.0005)

thread = threading.Thread(target=watch)
thread.start()
_, _, params = pretrained.load(sys.argv[2])
done = True
thread.join()
print(json.dumps({"peak": max(peak, resident()) - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_import_takes_the_model_and_its_largest_tensor(tmp_path, dtype):
  config = dataclasses.replace(
    LLAMA, vocab_size=60_000, d_model=256, d_mlp=1_024, num_layers=24,
    tied_embeddings=False,
  )  # fmt: skip
  small = export(tmp_path / "small", LLAMA, make(LLAMA)[1], dtype=dtype)
  _, params = transformer.create(config, 0)
  folder = export(tmp_path / "large", config, params, dtype=dtype)
  done = subprocess.run(
    [sys.executable, "-c", MEASURE, small, folder],
    cwd=ROOT, capture_output=True, text=True, check=True, timeout=300,
  )  # fmt: skip
  measured = json.loads(done.stdout)
  model = 4 * transformer.count_parameters(config)
  largest = 4 * config.vocab_size * config.d_model
  assert model > 200e6 and largest > 60e6
  # Compiled programs and what the allocator keeps of freed memory.
  bound = model + largest + 40e6
  assert 2 * model > bound, "reading the whole file at once must fail here"
  assert 0.9 * model < measured["peak"] < bound, measured
