"""Node expansions a second of a compiled search, and what others make of them.

Random weights of three shapes; a search never stops early. Beside ours stand

  floor          the weight multiplications alone, of as many rows at a time
  floor at 256   the same of 256 rows at a time
  naive mctx     the tokens in the embedding, the whole sequence run each time
  cache a node   the keys of the whole path in the embedding
  puct           mctx's PUCT over our pool of keys, V_search at its leaves
  state_keys     ours on a task that tells what responses have come to
  python tokens  a PUCT tree on transformers, the parent's cache copied
  python steps   the same over `generate`, four steps a node

A ratio is theirs over ours, in nodes a second; of the floor, in tokens. The
last two, which grow one tree as their users do, are held against ours of the
most trees that were timed, the others against ours of as many. Prompts are run
before the clock starts. Steps: four draws a node.

Command (the extra interop, or the last two are left out):
  python -m experiments.benchmarks.search --shapes=tiny,small,smollm2
    --output=FILE.json
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mctx
from absl import flags
from flax import nnx

from experiments.benchmarks import python_trees, shapes
from experiments.benchmarks.floor import floor_seconds, seconds
from experiments.benchmarks.shapes import Unsolved
from experiments.benchmarks.table import Table
from tsd_jax.base import config as config_lib
from tsd_jax.base.types import Array
from tsd_jax.inference.prefill import prefill
from tsd_jax.models import presets, transformer
from tsd_jax.models.transformer import KV, ModelConfig, Segment, Transformer
from tsd_jax.search import search as search_lib
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.config import SearchConfig
from tsd_jax.search.rules import PUCT
from tsd_jax.tasks.task import as_prompts

# A test process imports several scripts with flags of these names.
_SHAPES = flags.DEFINE_list(
  "shapes", ["tiny"], "tiny, small, smollm2.", allow_override=True
)
_REPEATS = flags.DEFINE_integer(
  "repeats", 3, "Timings; the median counts.", allow_override=True
)
_OUTPUT = config_lib.path_flag(
  "output", None, "JSON file to write.", allow_override=True
)
_TREES = flags.DEFINE_list(
  "trees",
  None,
  "Numbers of trees; those of the shape by default.",
  allow_override=True,
)
_DTYPE = flags.DEFINE_enum(
  "dtype",
  "float32",
  ["float32", "bfloat16"],
  "Of the model's arithmetic.",
  allow_override=True,
)
_PEERS = flags.DEFINE_boolean(
  "peers",
  True,
  "Also time naive searches, and trees in Python on a CPU.",
  allow_override=True,
)
# Of a cache a node: more is not tried.
_MOST_BYTES = 4 * 2**30
_A = 8  # Moves of a node.


@dataclasses.dataclass(frozen=True)
class Size:
  """What is searched."""

  model: ModelConfig
  length: int  # Of a prompt, and of a response.
  trees: tuple[int, ...]
  simulations: tuple[int, ...]
  slow_trees: int  # Of the searches that do much in vain.
  # Nodes of a search by steps, and of how many trees.
  step_trees: tuple[int, ...]
  step_nodes: int = 32


SIZES = {
  "tiny": Size(
    shapes.TINY,
    length=16, trees=(64, 256), simulations=(32, 128), slow_trees=64,
    step_trees=(64, 256),
  ),
  "small": Size(
    ModelConfig(
      vocab_size=4_096, d_model=512, num_layers=6, num_heads=8, num_kv_heads=8,
      head_dim=64, d_mlp=1_536, unroll_layers=6,
    ),
    length=32, trees=(64, 256), simulations=(32,), slow_trees=64,
    step_trees=(64,), step_nodes=8,
  ),
  "smollm2": Size(
    dataclasses.replace(presets.SMOLLM2_135M, unroll_decode=True),
    length=64, trees=(64, 256), simulations=(32,), slow_trees=8,
    step_trees=(64,), step_nodes=4,
  ),
}  # fmt: skip


class Sorted(Unsolved):
  """The order of the tokens of a response does not matter."""

  def state_key(self, prompt_XP: Array, response_XT: Array, length_X: Array):
    """The tokens in order."""
    del prompt_XP, length_X
    return jnp.sort(response_XT, axis=-1)


class Case:
  """A model and as many prompts as trees."""

  def __init__(self, size: Size, trees: int):
    """Runs the prompts."""
    graphdef, self.params = transformer.create(size.model, 0)
    self.model: Transformer = nnx.merge(graphdef, self.params)
    self.graphdef, self.length = graphdef, size.length
    self.task = Unsolved(size.model.vocab_size, size.length, size.length)
    shape = (trees, size.length)
    self.prompts = as_prompts(
      self.task,
      jax.random.randint(
        jax.random.key(1), shape, 1, size.model.vocab_size - 1
      ),
    )
    self.prefix = jax.jit(prefill)(self.model, self.prompts)

  def timed(self, run, repeats: int):
    """Seconds of run(model, prompts, prefix), compiled, and its result."""
    call = jax.jit(
      lambda params, *args: run(nnx.merge(self.graphdef, params), *args)
    )
    result = None

    def once():
      nonlocal result
      result = call(self.params, self.prompts, self.prefix)
      return result

    return seconds(once, repeats), result


def budget(trees: int, simulations: int) -> SearchConfig:
  """A search that makes all of its simulations."""
  return SearchConfig(
    BestFirst(stop_when_solved=False),
    num_simulations=simulations,
    num_candidates=_A,
    trees=trees,
  )


def ours(case: Case, config: SearchConfig, task: Unsolved | None = None):
  """The search that training uses; gives what a search counts."""
  task = task or case.task

  def run(model, prompts, prefix):
    key = jax.random.key(2)
    found = search_lib.search(model, task, prompts, key, config, prefix=prefix)
    return found.tree.node_visits.sum(), found.forwards

  return run


def root_of(model, x_BD, embedding):
  """A root, or a child, whose moves are the likeliest tokens."""
  log_prob_BV = jax.nn.log_softmax(model.logits(x_BD))
  prior_BA, token_BA = jax.lax.top_k(log_prob_BV, _A)
  return prior_BA, embedding | {"token": token_BA}


def by_mctx(model, prefix, embedding, expand, simulations: int, depth: int):
  """A PUCT search of mctx's own."""
  prior_BA, embedding = root_of(model, prefix.x_BD, embedding)
  zero_B = jnp.zeros(prior_BA.shape[0])

  def recurrent_fn(params, key, action_B, parent):
    del params, key
    token_B = jnp.take_along_axis(parent["token"], action_B[:, None], 1)[:, 0]
    x_BD, child = expand(token_B, parent)
    prior_BA, child = root_of(model, x_BD, child)
    output = mctx.RecurrentFnOutput(
      reward=zero_B, discount=zero_B + 1, prior_logits=prior_BA, value=zero_B
    )
    return output, child

  return mctx.muzero_policy(
    (),
    jax.random.key(2),
    mctx.RootFnOutput(prior_logits=prior_BA, value=zero_B, embedding=embedding),
    recurrent_fn,
    num_simulations=simulations,
    max_depth=depth,
    dirichlet_fraction=0.0,
  ).search_tree.node_visits.sum()


def naive(case: Case, simulations: int):
  """Tokens in the embedding; every expansion runs the whole sequence."""
  P = D = case.length

  def run(model, prompts, prefix):
    rows = jnp.arange(len(prompts))
    tokens = jnp.pad(prompts.tokens_BP, ((0, 0), (0, D)))
    embedding = {"tokens": tokens, "at": jnp.full(rows.shape, P)}

    def expand(token_B, parent):
      at_B = jnp.minimum(parent["at"], P + D - 1)
      tokens = parent["tokens"].at[rows, at_B].set(token_B)
      positions = jnp.broadcast_to(jnp.arange(P + D)[None], tokens.shape)
      x_RTD = model.trunk(tokens, positions).x_RTD
      return x_RTD[rows, at_B], {"tokens": tokens, "at": at_B + 1}

    return by_mctx(model, prefix, embedding, expand, simulations, D)

  return run


def cache_bytes(size: Size, trees: int, simulations: int) -> int:
  """What a cache a node takes."""
  c = size.model
  position = 2 * 4 * c.num_layers * c.num_kv_heads * c.head_dim
  return trees * (simulations + 1) * 2 * size.length * position


def cache_a_node(case: Case, simulations: int):
  """The keys of prompt and path in the embedding; mctx copies them."""
  P = D = case.length

  def run(model, prompts, prefix):
    rows = jnp.arange(len(prompts))
    (own,) = prefix.segments

    def padded(a_LBKSE):
      room = ((0, 0),) * 3 + ((0, D), (0, 0))
      return jnp.moveaxis(jnp.pad(a_LBKSE, room), 1, 0)

    embedding = {
      "k": padded(jnp.asarray(own.kv.k_LRKSE)),
      "v": padded(jnp.asarray(own.kv.v_LRKSE)),
      "at": jnp.full(rows.shape, P),
    }  # fmt: skip

    def expand(token_B, parent):
      at_B = jnp.minimum(parent["at"], P + D - 1)
      kv = KV(*(jnp.moveaxis(parent[n], 0, 1) for n in "kv"))
      seen_BS = jnp.arange(P + D)[None] < at_B[:, None]
      hidden = model.trunk(
        token_B[:, None],
        at_B[:, None],
        segments=(Segment(kv, seen_BS[:, None]),),
      )
      new = (jnp.moveaxis(jnp.asarray(a), 1, 0) for a in hidden.kv)
      k, v = (
        parent[n].at[rows, :, :, at_B].set(a[:, :, :, 0])
        for n, a in zip("kv", new, strict=True)
      )
      return hidden.x_RTD[:, 0], {"k": k, "v": v, "at": at_B + 1}

    return by_mctx(model, prefix, embedding, expand, simulations, D)

  return run


# Other searches of ours: name, task, changes of the config.
OTHERS = (
  ("puct", Unsolved, dict(rule=PUCT(stop_when_solved=False), leaf="value")),
  (
    "state_keys",
    Sorted,
    dict(rule=BestFirst(stop_when_solved=False, transpositions=True)),
  ),
)


def measure(
  name: str, size: Size, table: Table, repeats: int, *, peers: bool = True
) -> None:
  """Notes all rows of one shape; of ours alone without `peers`."""
  speeds = {}
  for trees in size.trees:
    case = Case(size, trees)
    for simulations in size.simulations:
      label = f"{name}, {trees} trees, {simulations} nodes"
      config = budget(trees, simulations)
      nodes = trees * simulations
      took, _ = case.timed(ours(case, config), repeats)
      speeds["tokens", trees, simulations] = nodes / took
      floor = floor_seconds(case.model, trees, simulations, repeats)
      wide = floor_seconds(case.model, 256, max(nodes // 256, 1), repeats)
      table.note(
        f"{label}, tokens", nodes / took, "nodes/s",
        floor=floor / took, floor_at_256=wide / took,
      )  # fmt: skip
    nodes = trees * (simulations := size.simulations[0])
    ours_speed = speeds["tokens", trees, simulations]
    for kind, task, change in OTHERS:
      config = dataclasses.replace(budget(trees, simulations), **change)
      took, _ = case.timed(ours(case, config, task(**vars(case.task))), repeats)
      table.note(
        f"{name}, {trees} trees, {simulations} nodes, {kind}",
        nodes / took,
        "nodes/s",
        ours=nodes / took / ours_speed,
      )
  for trees in size.step_trees:
    case = Case(size, trees)
    steps = dataclasses.replace(
      budget(trees, size.step_nodes),
      num_candidates=4,
      step_tokens=size.length // 4,
    )
    took, (_, forwards) = case.timed(ours(case, steps), repeats)
    rows = 4 * trees
    floor = floor_seconds(case.model, rows, int(forwards) // rows, repeats)
    speeds["steps", trees] = trees * size.step_nodes / took
    table.note(
      f"{name}, {trees} trees, {size.step_nodes} nodes, steps of "
      f"{steps.step_tokens}", speeds["steps", trees], "nodes/s",
      tokens_of_floor=floor / took,
    )  # fmt: skip

  if not peers:
    return
  trees, simulations = size.slow_trees, size.simulations[0]
  case, best = Case(size, trees), max(size.trees)
  nodes = trees * simulations
  run = ours(case, budget(trees, simulations))
  took, _ = case.timed(run, repeats)
  mine = nodes / took
  took, _ = case.timed(naive(case, simulations), 1)
  table.note(
    f"{name}, {trees} trees, naive mctx", nodes / took, "nodes/s",
    ours=nodes / took / mine,
  )  # fmt: skip
  if cache_bytes(size, trees, simulations) <= _MOST_BYTES:
    took, _ = case.timed(cache_a_node(case, simulations), 1)
    table.note(
      f"{name}, {trees} trees, cache a node", nodes / took, "nodes/s",
      ours=nodes / took / mine,
    )  # fmt: skip
  if importlib.util.find_spec("torch") is None:
    return
  for kind, theirs, own in (
    ("tokens", python_trees.tokens, speeds["tokens", best, simulations]),
    ("steps", python_trees.steps, speeds["steps", size.step_trees[-1]]),
  ):
    speed = theirs(size.model, size.length)
    table.note(
      f"{name}, 1 tree, python {kind}", speed, "nodes/s", ours=speed / own
    )


def chosen(size: Size) -> Size:
  """A shape's sizes as the flags have them."""
  model = dataclasses.replace(size.model, compute_dtype=_DTYPE.value)
  size = dataclasses.replace(size, model=model)
  if _TREES.value is None:
    return size
  try:
    trees = tuple(int(count) for count in _TREES.value)
    if min(trees) < 1:
      raise ValueError
  except ValueError:
    raise config_lib.UserError(
      f"--trees={','.join(_TREES.value)} must be whole numbers from 1 on"
    ) from None
  return dataclasses.replace(size, trees=trees, step_trees=trees[-1:])


def run(module: str, measure: Callable[[str, Size, Table, int], None]) -> None:
  """Notes the rows of every shape that the flags name, and writes the JSON."""
  unknown = sorted(set(_SHAPES.value) - set(SIZES))
  if unknown:
    raise config_lib.UserError(
      f"--shapes={','.join(unknown)} is unknown: use {', '.join(SIZES)}"
    )
  table = Table()
  for name in _SHAPES.value:
    measure(name, chosen(SIZES[name]), table, _REPEATS.value)
  command = config_lib.command(
    f"experiments.benchmarks.{module}", workdir=False
  )
  table.write(_OUTPUT.value, command)


def main(_):
  """Prints the table and writes the JSON."""
  run("search", functools.partial(measure, peers=_PEERS.value))


if __name__ == "__main__":
  config_lib.run(main)
