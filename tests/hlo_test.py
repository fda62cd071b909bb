"""The reader of compiled programs, against programs whose sends are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests import shipped
from tsd_jax.parallel import sharding
from tsd_jax.planning import hlo


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,1},{2,3}}", ((0, 1), (2, 3))),
    ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
    ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
    ("channel_id=1", ()),
  ],
)
def test_groups_are_read_in_every_notation(text, groups):
  assert hlo.replica_groups(text) == groups


def test_bytes_of_types():
  assert hlo.shape_bytes("f32[2,3]{1,0}") == 24
  assert hlo.shape_bytes("(bf16[4]{0}, pred[])") == 9


def test_sends_are_counted_as_often_as_their_loop_runs():
  devices = sharding.make_mesh(sharding.MeshConfig(data=4, tensor=2))

  def looping(x_XD):
    """A sum over devices in a loop of 5, in a loop that ends by its data."""

    def inner(_, x_XD):
      total = jax.lax.psum(x_XD, "tensor")
      return x_XD + 0.5 * total

    def outer(carry):
      i, x_XD = carry
      return i + 1, jax.lax.fori_loop(0, 5, inner, x_XD)

    start = (jnp.int32(0), x_XD)
    return jax.lax.while_loop(lambda c: jnp.sum(c[1]) < 1e9, outer, start)[1]

  f = jax.shard_map(
    jax.named_scope("looping")(looping),
    mesh=devices,
    in_specs=P("data"),
    out_specs=P("data"),
    check_vma=False,
  )
  x_XD = jax.device_put(jnp.ones((8, 4)), NamedSharding(devices, P("data")))
  program = hlo.Program(shipped.compiled(jax.jit(f).lower(x_XD)).as_text())
  assert program.has_loops("looping") and not program.has_loops("elsewhere")
  (found,) = program.in_loops("looping")
  assert found.kind == "all-reduce" and found.bytes == 2 * 4 * 4
  assert set(found.groups) == {(i, i + 1) for i in range(0, 8, 2)}
  assert program.totals()["all-reduce"]["runs"] == 5
  assert program.totals({"looping": (3,)})["all-reduce"] == dict(
    instructions=1, runs=15, bytes=15 * 32
  )
  assert program.totals(scope="elsewhere") == {}


def test_loops_of_unknown_length_are_told_by_their_nesting():
  def looping(x_DD, limit):
    """Blocks of a loop in a loop: both end by their data."""

    def until(y_DD, step):
      return jax.lax.while_loop(lambda y_DD: jnp.sum(y_DD) < limit, step, y_DD)

    def block(x_DD):
      return until(x_DD, lambda y_DD: until(y_DD @ y_DD, lambda z: z @ z) + 1)

    return jax.lax.map(block, x_DD)

  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((7, 8, 8), ())]
  lowered = jax.jit(jax.named_scope("looping")(looping)).lower(*shapes)
  program = hlo.Program(shipped.compiled(lowered).as_text())
  product = 2 * 8**3
  assert program.flops() == 7 * 2 * product
  assert program.flops({"looping": (5,)}) == 7 * 5 * 2 * product
  assert program.flops({"looping": (5, 3)}) == 7 * 5 * (1 + 3) * product


def test_multiplications_are_counted_as_often_as_their_loop_runs():
  def looping(x_XD, w_DD, y_BDE):
    """D x D weights six times; a batched product of each pair once."""
    x_XD = jax.lax.fori_loop(0, 6, lambda _, x_XD: jnp.tanh(x_XD @ w_DD), x_XD)
    return x_XD, jnp.einsum("bde,bfe->bdf", y_BDE, y_BDE)

  shapes = [
    jax.ShapeDtypeStruct(s, jnp.float32)
    for s in ((32, 16), (16, 16), (3, 8, 64))
  ]
  program = hlo.Program(
    shipped.compiled(jax.jit(looping).lower(*shapes)).as_text()
  )
  assert program.flops() == 6 * 2 * 32 * 16 * 16 + 2 * 3 * 8 * 8 * 64

  devices = sharding.make_mesh(sharding.MeshConfig(data=4, tensor=2))
  split = (
    NamedSharding(devices, P("data")),
    NamedSharding(devices, P(None, "tensor")),
  )
  shapes = [
    jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=s) for s in split
  ]
  product = jax.jit(lambda x_XD, y_XD: x_XD @ y_XD.T @ y_XD)
  # Rows over four devices, columns of the second factor over two.
  program = hlo.Program(shipped.compiled(product.lower(*shapes)).as_text())
  alone = product.lower(*(jax.ShapeDtypeStruct((32, 16), jnp.float32),) * 2)
  whole = hlo.Program(shipped.compiled(alone).as_text())
  assert whole.flops() == 2 * 2 * 32 * 32 * 16
  assert program.flops() == whole.flops() / 8


# As libtpu 0.0.42 writes them, shortened.
ASYNC = """
%begin (p: bf16[2,144]) -> (bf16[2,576]) {
  %p = bf16[2,144]{1,0} parameter(0)
  %g.1 = bf16[2,576]{1,0} all-gather(%p), channel_id=23, dimensions={1}
  ROOT %s = (bf16[2,576]{1,0}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}
%meanwhile (p.1: bf16[2,144]) -> bf16[2,576] {
  %p.1 = bf16[2,144]{1,0} parameter(0)
  ROOT %g.2 = bf16[2,576]{1,0} all-gather(%p.1), channel_id=23, dimensions={1}
}
%all-reduce-scatter.1 (p.2: f32[8,4]) -> f32[8,1] {
  %p.2 = f32[8,4]{1,0} parameter(0)
  %r = f32[8,4]{1,0} all-reduce(%p.2), channel_id=24, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %d = f32[8,1]{1,0} dynamic-slice(%r, %zero, %mine), dynamic_slice_sizes={8,1}
}
ENTRY %main (a: bf16[2,144], b: f32[8,4]) -> f32[8,1] {
  %a = bf16[2,144]{1,0} parameter(0)
  %b = f32[8,4]{1,0} parameter(1)
  %f.1 = (bf16[2,576]{1,0}) fusion(%a), kind=kCustom, calls=%begin
  %f.2 = bf16[2,576]{1,0} fusion(%a), kind=kOutput, calls=%meanwhile
  ROOT %f.3 = f32[8,1]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501


def test_a_tpus_sends_are_counted_once_and_by_what_a_device_keeps():
  assert hlo.Program(ASYNC).totals() == {
    "all-gather": dict(instructions=1, runs=1, bytes=2 * 576 * 2),
    "reduce-scatter": dict(instructions=1, runs=1, bytes=4 * 8 * 4),
  }


def test_a_permute_of_a_tpu_sends_its_shard():
  """Its type ends with words of the compiler's own."""
  text = """ENTRY %main (a: f32[1024,1024]) -> f32[1024,1024] {
  %a = f32[1024,1024]{1,0} parameter(0)
  %s = (f32[1024,1024]{1,0}, f32[1024,1024]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%a), channel_id=1, source_target_pairs={{0,1},{1,0}}
  ROOT %d = f32[1024,1024]{1,0} collective-permute-done(%s)
}"""  # noqa: E501
  assert hlo.Program(text).totals() == {
    "collective-permute": dict(instructions=1, runs=1, bytes=4 * 2**20)
  }


def test_a_sum_that_is_scattered_counts_whole():
  devices = sharding.make_mesh(sharding.MeshConfig(data=4, tensor=2))
  f = jax.shard_map(
    lambda x_D: jax.lax.psum_scatter(x_D, "data", tiled=True),
    mesh=devices,
    in_specs=P(),
    out_specs=P("data"),
    check_vma=False,
  )
  x_D = jax.device_put(jnp.ones(8), NamedSharding(devices, P()))
  totals = hlo.Program(
    shipped.compiled(jax.jit(f).lower(x_D)).as_text()
  ).totals()
  assert totals == {"reduce-scatter": dict(instructions=1, runs=1, bytes=4 * 8)}
