"""The same numbers on any mesh, and no weight gathered inside a loop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from tests import iteration_test as tiny
from tests import shipped, small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import UserError
from tsd_jax.learning import iteration, losses
from tsd_jax.learning.config import OptimizerConfig
from tsd_jax.learning.update import FixedParams
from tsd_jax.models import presets, transformer
from tsd_jax.parallel import sharding
from tsd_jax.planning import aot, hlo
from tsd_jax.search import search as search_lib
from tsd_jax.tasks.task import prompt_form

MESHES = {
  "4x2": dict(data=4, tensor=2),
  "2x2x2": dict(slice=2, fsdp=2, tensor=2),
}
# A large epsilon: Adam's step is then smooth in the gradient, and what another
# order of summation changes stays small.
CONFIG = tiny.configure(
  optimizer=OptimizerConfig(learning_rate=3e-3, minibatches=4, eps=1e-2)
)


# With parameters split over fsdp: whether they are gathered.
USES = [(name, {}) for name in MESHES] + [
  ("2x2x2", dict(gather=True)),
  ("2x2x2", dict(serving="2d")),
]


def mesh(name):
  return sharding.make_mesh(sharding.MeshConfig(**MESHES[name]))


def test_names_say_how_parameters_are_split():
  devices = mesh("2x2x2")
  cases = {
    "query_LDHE": ((2, 8, 4, 16), P(None, "fsdp", "tensor", None)),
    "output_LHED": ((2, 4, 16, 8), P(None, "tensor", None, "fsdp")),
    "down_LFD": ((2, 6, 8), P(None, "tensor", "fsdp")),
    "embedding_VD": ((10, 8), P("tensor", "fsdp")),
    "value_hidden_2DD": ((2, 8, 8), P(None, "fsdp", None)),  # Not twice.
    "key_LDKE": ((2, 8, 1, 16), P(None, "fsdp", None, None)),  # One head.
    "count": ((), P()),
  }
  for name, (shape, expected) in cases.items():
    assert sharding.spec(name, shape, devices, sharding.TRAINED) == expected
    served = sharding.spec(name, shape, devices, sharding.SERVED)
    assert "fsdp" not in served


@pytest.mark.parametrize("preset", ["QWEN2_5_1_5B", "LLAMA3_70B", "DENSE_1T"])
def test_parameters_and_their_moments_are_split(preset):
  shapes = transformer.abstract(getattr(presets, preset))[1]
  state = jax.eval_shape(
    functools.partial(iteration.init_state, CONFIG), shapes
  )
  devices = mesh("2x2x2")
  places = sharding.of_params(state, devices)
  whole = part = 0
  for leaf, place in zip(
    jax.tree.leaves(state), jax.tree.leaves(places), strict=True
  ):
    whole += leaf.size
    part += np.prod(place.shard_shape(leaf.shape), dtype=np.int64)
  assert part <= 0.255 * whole  # Over fsdp and tensor; norms over fsdp only.


def test_too_few_devices_are_named():
  with pytest.raises(UserError, match=r"data=16.* exceeds the 8 cpu devices"):
    sharding.make_mesh(sharding.MeshConfig(data=16))


@pytest.mark.parametrize(
  ("use", "said"),
  [({"gather": True}, "gather=true"), ({"serving": "2d"}, "2d")],
)
def test_what_becomes_of_split_parameters_needs_some(use, said):
  with pytest.raises(ValueError, match=rf"mesh.*{said}.* set mesh.fsdp > 1"):
    sharding.MeshConfig(data=2, **use)


@pytest.mark.parametrize(("name", "gather"), [("4x2", False), ("2x2x2", True)])
def test_copies_add_up_to_the_mean_and_its_gradient(name, gather):
  devices = mesh(name)
  rng = np.random.default_rng(0)
  x_BTD = rng.normal(size=(8, 3, 6)).astype(np.float32)
  w_D = rng.normal(size=6).astype(np.float32)
  mask_BT = rng.random((8, 3)) < 0.5
  mask_BT[:2] = False  # One copy's prompts count for nothing.

  def square(w, batch):
    x_BTD, mask_BT = batch
    return losses.masked_mean((x_BTD @ w["w_D"]) ** 2, mask_BT)

  batch = jax.device_put((x_BTD, mask_BT), sharding.over_prompts(devices))
  w = sharding.place({"w_D": w_D}, devices)
  both = jax.value_and_grad(square)
  mean, gradient = jax.jit(sharding.per_replica(both, devices, gather))(
    w, batch
  )
  gradient_D = gradient["w_D"]
  assert gradient_D.sharding.shard_shape((6,)) == w["w_D"].sharding.shard_shape(
    (6,)
  )
  y_N, x_RD = (x_BTD @ w_D)[mask_BT], x_BTD[mask_BT]
  np.testing.assert_allclose(mean, np.mean(y_N**2), rtol=1e-5)
  expected_D = 2 * y_N @ x_RD / len(y_N)
  np.testing.assert_allclose(gradient_D, expected_D, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
  "mesh",
  [{"mesh.data": "8"}, {"mesh.fsdp": "8", "mesh.gather": "true"}],
  ids=["copies", "gathered"],
)
def test_a_minibatchs_gradient_is_sent_once(mesh):
  # Weights read in four passes: prompt and answer, of samples and of champions.
  config = config_lib.override(
    small_experiment.get_config(),
    {
      "loss.champion_source": "samples",
      "rollout.prompts": "16",
      "loss.distilled_prompts": "16",
      "model.d_model": "64",
      "model.d_mlp": "256",
      **mesh,
    },
  )
  train_loop, shapes = aot.arguments(config, sharding.make_mesh(config.mesh))
  program = hlo.Program(shipped.compiled(train_loop.lower(*shapes)).as_text())
  sent = sum(kind["bytes"] for kind in program.totals().values())
  weights = 4 * transformer.count_parameters(config.model)
  times = config.optimizer.minibatches
  if config.mesh.gather:
    times += times + 1  # The weights before each gradient, and for the samples.
  assert times * weights <= sent < 1.05 * times * weights


def search(devices, serving="tensor", **changes):
  """Trees of the tiny model's search over all prompts."""
  graphdef, params = tiny.start()
  config = dataclasses.replace(CONFIG.search, **changes)

  def searching(params, prompts, key):
    model = nnx.merge(graphdef, params)
    result = search_lib.search(model, tiny.TASK, prompts, key, config)
    # What the rule keeps for itself leads with no prompt.
    return result.tree.embeddings, result.forwards, {}

  prompts = tiny.prompts(1)[0]
  if devices is not None:
    params = sharding.place(params, devices)
    prompts = jax.device_put(prompts, sharding.over_prompts(devices))

  @jax.jit
  def run(params, prompts, key):
    served = sharding.serving_copy(params, jnp.float32, devices, serving)
    part = sharding.per_shard(searching, devices, serving)
    return part(served, prompts, key)

  return jax.device_get(run(params, prompts, jax.random.key(3)))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "serving", "changes"),
  [
    ("4x2", "tensor", {}),
    ("2x2x2", "tensor", {}),
    ("2x2x2", "2d", {}),
    # A part whose trees are done waits for the others.
    ("4x2", "tensor", dict(slot_reuse=True, trees=1)),
    ("2x2x2", "2d", dict(slot_reuse=True, trees=1)),
  ],
  ids=str,
)
def test_trees_are_the_same_on_any_mesh(name, serving, changes):
  (one, tokens_one, _), (many, tokens_many, _) = (
    search(None, **changes),
    search(mesh(name), serving, **changes),
  )
  assert tokens_one <= tokens_many if changes else tokens_one == tokens_many
  for field, a in vars(one).items():
    b = getattr(many, field)
    if a is None:  # Nothing is merged.
      continue
    if np.issubdtype(a.dtype, np.floating):
      np.testing.assert_allclose(a, b, atol=1e-4, err_msg=field)
    else:
      np.testing.assert_array_equal(a, b, err_msg=field)


@dataclasses.dataclass(frozen=True)
class Alike(tiny.Copy):
  """Prompts that begin with the same token."""

  shared_prefix_length = 1


@functools.cache
def iterate_alike(split, devices=None):
  """Prompts that begin alike: every device runs that beginning once."""
  task, prompts = Alike(), tiny.prompts(2)
  prompts.tokens_BP[..., 0] = 3
  learner = dataclasses.replace(
    CONFIG, prompt_form=prompt_form(task), mesh=split
  )
  return tiny.run(learner, prompts, mesh=devices, task=task)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "use"), USES, ids=str)
def test_an_iteration_is_the_same_on_any_mesh(name, use):
  split = sharding.MeshConfig(**MESHES[name], **use)
  one, metrics_one = iterate_alike(sharding.ONE_DEVICE)
  many, metrics_many = iterate_alike(split, mesh(name))
  for field in (
    *("loss", "reward", "correct", "search_reward", "search_simulations"),
    *("policy_loss", "champion_ce", "entropy", "grad_norm", "champion_rate"),
  ):
    np.testing.assert_allclose(
      metrics_one[field], metrics_many[field], rtol=1e-3, atol=1e-5,
      err_msg=field,
    )  # fmt: skip
  moved = 0.0
  start = jax.tree.leaves(tiny.start()[1])
  for before, a, b in zip(
    start, jax.tree.leaves(one.params), jax.tree.leaves(many.params),
    strict=True,
  ):  # fmt: skip
    np.testing.assert_allclose(a, b, atol=1e-5)
    moved = max(moved, float(np.max(np.abs(a - before))))
  assert moved > 1e-3  # The update that is compared is no rounding error.


@pytest.mark.slow
@pytest.mark.parametrize("serving", ["tensor", "2d"])
def test_loops_send_activations_over_the_serving_axes_only(serving):
  devices = mesh("2x2x2")
  split = sharding.MeshConfig(**MESHES["2x2x2"], serving=serving)
  config = dataclasses.replace(CONFIG, mesh=split)
  graphdef, params = tiny.start()
  state = sharding.place(tiny.fresh(config), devices)
  fixed = FixedParams(sharding.place(jax.tree.map(jnp.copy, params), devices))
  prompts = jax.device_put(
    tiny.prompts(1), sharding.over_prompts(devices, leading=1)
  )
  hyper = {k: jnp.float32(v) for k, v in config.hyper.items()}
  train_loop = iteration.make_train_loop(graphdef, tiny.TASK, config, devices)
  lowered = train_loop.lower(state, prompts, fixed, hyper, jax.random.key(0))
  program = hlo.Program(shipped.compiled(lowered).as_text())
  tensor = {(i, i + 1) for i in range(0, 8, 2)}  # The last axis.
  fsdp = {(i, i + 2) for i in (0, 1, 4, 5)}
  # Features are summed, and turned once, over the axis that splits them.
  sides, features = [tensor], 0
  if serving == "2d":
    sides, features = [tensor, fsdp], tiny.MODEL.d_model // 2
  # Rows of one part: a tree a prompt, or the samples of its prompts.
  for scope, rows in (
    ("searching", CONFIG.search.trees),
    ("sampling", tiny.B // split.shards * CONFIG.rollout.group),
  ):
    assert program.has_loops(scope)
    found = program.in_loops(scope)
    for side in sides:
      assert any(c.kind == "all-reduce" and set(c.groups) == side
                 for c in found)  # fmt: skip
    turns = [c for c in found if c.kind == "collective-permute"]
    assert all(c.bytes <= 4 * rows * features for c in turns)
    others = [c for c in found if c not in turns]
    stops = [c for c in others if set(c.groups) not in sides]
    # Devices agree on when to stop: one number a simulation, from the search.
    assert all(c.kind == "all-reduce" and c.bytes <= 4 for c in stops)
    assert len(stops) == (scope == "searching")
    for c in others:
      # Of logits their best, and of chances their sum: no weight, cache, pool.
      if c.kind != "all-reduce":
        assert c.kind == "all-gather" and set(c.groups) == tensor
        assert c.bytes <= 4 * rows * 2 * CONFIG.search.num_candidates
  # Weights are gathered, but where they are trained.
  assert "all-gather" in program.totals()
