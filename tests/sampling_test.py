"""Sampling and the search's key pools against plain full forwards."""

import dataclasses
import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tsd_jax.base.types import PromptForm, Prompts
from tsd_jax.inference import prefill, sampling
from tsd_jax.models.transformer import ModelConfig, Transformer
from tsd_jax.search import kv_pool
from tsd_jax.tasks.task import real_tokens

CONFIG = ModelConfig(
  vocab_size=13,
  d_model=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  d_mlp=24,
  qk_norm=True,
)
EOS, PAD, NEVER = 11, 12, 99
LENGTH = 10
PROMPT_BP = np.random.default_rng(0).integers(0, 11, (4, 7)).astype(np.int32)
PROMPT_LENGTH_B = np.array([3, 7, 1, 5])
PROMPT_BP[np.arange(7)[None] >= PROMPT_LENGTH_B[:, None]] = PAD


@pytest.fixture(autouse=True)
def _strict_ranks():
  with jax.numpy_rank_promotion("raise"):
    yield


@functools.cache
def build() -> Transformer:
  """A model none of whose parameters is a zero or a one that hides a bug."""
  # Tests trace this inside jit: the arrays must not be tracers.
  graph, shapes = nnx.split(
    nnx.eval_shape(lambda: Transformer(CONFIG, nnx.Rngs(params=0)))
  )
  rng = np.random.default_rng(1)

  def draw(path, shape):
    mean = 1.0 if "norm" in jax.tree_util.keystr(path) else 0.0
    with jax.ensure_compile_time_eval():
      return jnp.asarray(rng.normal(mean, 0.3, shape.shape), shape.dtype)

  return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, shapes))


@jax.jit
def _plain(tokens_1T):
  model = build()
  positions_1T = jnp.arange(tokens_1T.shape[1])[None]
  x_1TD = model.trunk(tokens_1T, positions_1T).x_RTD
  return model.logits(x_1TD)[0], model.values(x_1TD)[0][0]


def plain(tokens) -> tuple[np.ndarray, np.ndarray]:
  """Logits and V_pi of one sequence, no cache; junk after it is causal."""
  padded = np.zeros((1, 24), np.int32)
  padded[0, : len(tokens)] = tokens
  logits_TV, value_T = _plain(padded)
  return np.asarray(logits_TV)[: len(tokens)], np.asarray(value_T)


def prompt(row: int) -> list[int]:
  return list(PROMPT_BP[row, : PROMPT_LENGTH_B[row]])


def prefilled(prompt_BP, pad_id=None):
  """Prompts through the model, of which some are padded with a token."""
  prompt_BP = jnp.asarray(prompt_BP)
  B, P = prompt_BP.shape
  length_B = jnp.full(B, P)
  if pad_id is not None:
    length_B = jnp.sum(real_tokens(prompt_BP, pad_id), axis=1)
  prompts = Prompts(prompt_BP, length_B, jnp.arange(B))
  return prefill.prefill(build(), prompts, PromptForm(pad_id is not None))


@functools.partial(jax.jit, static_argnames=("group", "length"))
def draw(
  prompt_BP, pad_id, keys_R, *, group=1, eos_id=EOS, temperature=1.0,
  fork=None, room_R=None, length=LENGTH,
):  # fmt: skip
  model = build()
  prefix = prefilled(prompt_BP, pad_id)
  return sampling.sample(
    model, prefill.repeat_rows(prefix, group), keys_R, length=length,
    eos_id=eos_id, pad_id=PAD, temperature=temperature, fork=fork,
    room_R=room_R,
  )  # fmt: skip


def split(seed: int, rows: int):
  return jax.random.split(jax.random.key(seed), rows)


def check_row(sampled, row, context, temperature):
  """Everything stored of a row equals a plain full forward over it."""
  n = int(sampled.mask_RT[row].sum())
  tokens = np.asarray(sampled.tokens_RT[row])
  logits_TV, value_T = plain([*context, *tokens[:n]])
  log_prob_TV = np.asarray(jax.nn.log_softmax(logits_TV / temperature))
  before = slice(len(context) - 1, len(context) - 1 + n)
  log_prob_TV = log_prob_TV[before]
  np.testing.assert_allclose(
    sampled.log_prob_RT[row, :n], log_prob_TV[np.arange(n), tokens[:n]],
    atol=1e-4,
  )  # fmt: skip
  entropy_T = -(np.exp(log_prob_TV) * log_prob_TV).sum(-1)
  np.testing.assert_allclose(sampled.entropy_RT[row, :n], entropy_T, atol=1e-4)
  np.testing.assert_allclose(
    sampled.value_RT[row, :n], value_T[before], atol=1e-4
  )
  for name in ("log_prob_RT", "entropy_RT", "value_RT"):
    assert np.all(np.asarray(getattr(sampled, name))[row, n:] == 0), name


def check_ends(tokens_RT, mask_RT, room_R):
  """Masked up to and including the first end token, PAD after it."""
  for tokens, mask, room in zip(tokens_RT, mask_RT, room_R, strict=True):
    ends = np.flatnonzero(tokens == EOS)
    n = ends[0] + 1 if len(ends) else room
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < n)
    assert np.all(tokens[n:] == PAD)


def test_prefill_ignores_padding():
  run = jax.jit(prefilled)
  prefix = run(PROMPT_BP, PAD)
  np.testing.assert_array_equal(prefix.length_B, PROMPT_LENGTH_B)
  logits_BV = build().logits(prefix.x_BD)
  for b in range(4):
    alone = run(np.array([prompt(b)]))
    np.testing.assert_allclose(prefix.x_BD[b], alone.x_BD[0], atol=1e-5)
    expected_TV, _ = plain(prompt(b))
    np.testing.assert_allclose(logits_BV[b], expected_TV[-1], atol=1e-4)


def test_padded_prompts_draw_the_same_responses():
  keys_B = split(0, 4)
  junk_BP = np.where(PROMPT_BP == PAD, EOS, PROMPT_BP)
  padded = draw(PROMPT_BP, PAD, keys_B)
  other = draw(junk_BP, EOS, keys_B)
  np.testing.assert_array_equal(padded.log_prob_RT, other.log_prob_RT)
  for b in (0, 2):
    alone = draw(np.array([prompt(b)]), None, keys_B[b : b + 1])
    np.testing.assert_array_equal(padded.tokens_RT[b], alone.tokens_RT[0])
    np.testing.assert_allclose(
      padded.log_prob_RT[b], alone.log_prob_RT[0], atol=1e-5
    )


def test_greedy_is_an_argmax_loop_and_stops_at_the_end_token():
  def loop(context, eos_id):
    tokens = []
    while len(tokens) < LENGTH and eos_id not in tokens:
      tokens.append(int(plain([*context, *tokens])[0][-1].argmax()))
    return tokens + [PAD] * (LENGTH - len(tokens))

  free = draw(PROMPT_BP, PAD, None, eos_id=NEVER)
  expected = [loop(prompt(b), NEVER) for b in range(4)]
  np.testing.assert_array_equal(free.tokens_RT, expected)
  # Now let a token that row 0 did emit be the end token.
  eos_id = expected[0][2]
  ended = draw(PROMPT_BP, PAD, None, eos_id=eos_id)
  expected = [loop(prompt(b), eos_id) for b in range(4)]
  np.testing.assert_array_equal(ended.tokens_RT, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_store_what_a_plain_forward_says(temperature):
  group = 4
  sampled = draw(
    PROMPT_BP, PAD, split(1, 16), group=group,
    temperature=temperature,
  )  # fmt: skip
  tokens_RT, mask_RT = map(np.asarray, (sampled.tokens_RT, sampled.mask_RT))
  check_ends(tokens_RT, mask_RT, [LENGTH] * 16)
  lengths = mask_RT.sum(1)
  assert len(set(lengths)) > 2, "the seed must give several lengths"
  for row in range(16):
    check_row(sampled, row, prompt(row // group), temperature)
  # The last token of the longest row needs no forward.
  assert int(sampled.forwards) == 16 * (lengths.max() - 1)


def test_samples_follow_the_distribution():
  rows, temperature = 4096, 0.7
  sampled = draw(
    PROMPT_BP[:1], PAD, split(2, rows), group=rows, length=1,
    temperature=temperature,
  )  # fmt: skip
  count_V = np.bincount(sampled.tokens_RT[:, 0], minlength=CONFIG.vocab_size)
  p_V = np.asarray(jax.nn.softmax(plain(prompt(0))[0][-1] / temperature))
  error_V = np.abs(count_V / rows - p_V)
  assert np.all(error_V < 5 * np.sqrt(p_V * (1 - p_V) / rows) + 1e-3)
  assert int(sampled.forwards) == 0


def test_a_row_depends_on_its_own_key_only():
  keys_B = split(3, 4)
  four = draw(PROMPT_BP, PAD, keys_B)
  order = np.array([2, 0, 3, 1])
  permuted = draw(PROMPT_BP[order], PAD, keys_B[order])
  np.testing.assert_array_equal(four.tokens_RT[order], permuted.tokens_RT)
  np.testing.assert_array_equal(four.mask_RT[order], permuted.mask_RT)
  two = draw(PROMPT_BP[:2], PAD, keys_B[:2])
  np.testing.assert_array_equal(four.tokens_RT[:2], two.tokens_RT)
  np.testing.assert_allclose(four.log_prob_RT[:2], two.log_prob_RT, atol=1e-5)


def test_groups_share_their_prompt():
  repeated = jax.eval_shape(
    lambda: prefill.repeat_rows(prefilled(PROMPT_BP, PAD), 3)
  )
  (prompt,) = repeated.segments
  assert prompt.kv.k_LRKSE.shape[1] == 4
  assert repeated.x_BD.shape[0] == repeated.length_B.shape[0] == 12
  keys_R = split(4, 12)
  shared = draw(PROMPT_BP, PAD, keys_R, group=3)
  copied = draw(
    np.repeat(PROMPT_BP, 3, axis=0), PAD,
    keys_R,
  )  # fmt: skip
  np.testing.assert_array_equal(shared.tokens_RT, copied.tokens_RT)
  np.testing.assert_allclose(shared.log_prob_RT, copied.log_prob_RT, atol=1e-5)


def test_rows_stop_at_their_room():
  room_R = np.array([0, 1, 6, 99])
  sampled = draw(PROMPT_BP, PAD, None, eos_id=NEVER, room_R=room_R)
  np.testing.assert_array_equal(sampled.mask_RT.sum(1), [0, 1, 6, LENGTH])
  check_row(sampled, 2, prompt(2), 1.0)


def fork_at(sampled, row_R, length_R):
  """Keeps the first tokens of some sampled rows."""
  return sampling.Fork(
    kv=prefill.take_rows(sampled.kv, row_R),
    length_R=jnp.asarray(length_R, jnp.int32),
    last_token_R=sampled.tokens_RT[row_R, np.asarray(length_R) - 1],
  )


def test_a_greedy_fork_of_a_greedy_response_is_its_tail():
  whole = draw(PROMPT_BP, PAD, None, eos_id=NEVER)
  length_R = np.array([1, 4, 9, 10])
  fork = fork_at(whole, np.arange(4), length_R)
  tail = draw(PROMPT_BP, PAD, None, eos_id=NEVER, fork=fork)
  for row, kept in enumerate(length_R):
    left = LENGTH - kept
    np.testing.assert_array_equal(
      tail.tokens_RT[row, :left], whole.tokens_RT[row, kept:]
    )
    assert np.all(tail.tokens_RT[row, left:] == PAD)
    np.testing.assert_array_equal(tail.mask_RT[row], np.arange(LENGTH) < left)
    np.testing.assert_allclose(
      tail.log_prob_RT[row, :left], whole.log_prob_RT[row, kept:], atol=1e-4
    )
  # One forward a row for the last kept token; none for the last sampled one.
  assert int(tail.forwards) == 4 * (LENGTH - 1)


def test_sampled_forks_store_what_a_plain_forward_says():
  group, parents = 2, np.array([0, 0, 3, 2, 4, 5, 6, 6])
  first = draw(PROMPT_BP, PAD, split(5, 8), group=group, eos_id=NEVER)
  length_R = np.array([2, 5, 1, 9, 3, 3, 6, 7])
  fork = fork_at(first, parents, length_R)
  second = draw(
    PROMPT_BP, PAD, split(6, 8), group=group, fork=fork,
    temperature=0.7,
  )  # fmt: skip
  tokens_RT, mask_RT = map(np.asarray, (second.tokens_RT, second.mask_RT))
  check_ends(tokens_RT, mask_RT, LENGTH - length_R)
  for row, (parent, kept) in enumerate(zip(parents, length_R, strict=True)):
    assert parent // group == row // group
    context = [*prompt(row // group), *first.tokens_RT[parent, :kept]]
    check_row(second, row, [int(t) for t in context], 0.7)
  assert int(second.forwards) == 8 * mask_RT.sum(1).max()


def test_splice_and_row_keys():
  head_RT = jnp.arange(8).reshape(2, 4)
  tail_RT = 10 + head_RT
  np.testing.assert_array_equal(
    sampling.splice(head_RT, jnp.array([1, 3]), tail_RT),
    [[0, 10, 11, 12], [4, 5, 6, 14]],
  )
  data_R = jax.random.key_data(sampling.row_keys(jax.random.key(0), 4, 3))
  assert data_R.shape[0] == len(np.unique(data_R, axis=0)) == 12


# Nodes, and the most tokens of a path.
NODES, WIDTH = 9, 7


def random_parents() -> np.ndarray:
  """Parent slot of each node and tree, NODES standing for the root."""
  rng = np.random.default_rng(7)
  parent_NB = np.empty((NODES, 4), np.int32)
  for b in range(4):
    depth = {NODES: 0}
    for n in range(NODES):
      choices = [p for p in depth if depth[p] < WIDTH]
      parent_NB[n, b] = rng.choice(choices)
      depth[n] = depth[parent_NB[n, b]] + 1
  return parent_NB


PARENT_NB = random_parents()
TOKEN_NB = np.random.default_rng(8).integers(0, 11, (NODES, 4)).astype(np.int32)


class ReadFirstPool(kv_pool.KVPool):
  """The order of reading and writing that `KVPool` avoids."""

  def forward(
    self, model, step_B1, length_B, position_B, prompt, slots_BT, depth_B
  ):
    read, seen_B1S = self._reading(slots_BT, depth_B[:, None] - 1)
    mask_B1S = jnp.pad(seen_B1S, ((0, 0), (0, 0), (0, 1)), constant_values=True)

    def memory(layer, *new):
      pieces = []
      for (ref,), new_BK1E in zip(self._refs, new, strict=True):
        old_BKSE = read(ref[...][layer])
        pieces.append(jnp.concatenate([old_BKSE, new_BK1E], axis=2))
        ref[...] = self._written(ref[...], new_BK1E, layer)
      return *pieces, mask_B1S

    x_B1D = model.trunk(
      step_B1, position_B[:, None], segments=prompt, memory=memory
    ).x_RTD
    return x_B1D[:, 0]


def gathering(*args, **kwargs):
  """A pool whose paths are gathered, as in trees of more nodes."""
  with mock.patch.object(kv_pool, "IN_PLACE", 0):
    return kv_pool.KVPool(*args, **kwargs)


POOLS = (kv_pool.KVPool, gathering)


def grow(pool_type, written):
  """Builds all nodes through the pool and decodes greedily below each."""
  model = build()
  prefix = prefilled(PROMPT_BP, PAD)
  if written:
    model = nnx.clone(model)
    model.config = dataclasses.replace(CONFIG, unroll_decode=True)
    model = model.written_out()
    past = prefill.unstacked(model, prefix.segments)
    prefix = prefix._replace(segments=past)
  pool = pool_type(model, 4, NODES, path=WIDTH)
  rows = jnp.arange(4)

  def body(n, state):
    slots_NBD, depth_NB, logits_NBV, tokens_NBT, _ = state
    parent_B = jnp.asarray(PARENT_NB)[n]
    depth_B = depth_NB[parent_B, rows] + 1
    slots_BT = slots_NBD[parent_B, rows].at[rows, depth_B].set(n)
    x_BD = pool.forward(
      model, jnp.asarray(TOKEN_NB)[n][:, None], jnp.ones_like(depth_B),
      prefix.length_B + depth_B, prefix.segments, slots_BT, depth_B,
    )  # fmt: skip
    below = sampling.sample(
      model,
      prefill.Prefix(prefix.segments, prefix.length_B + depth_B + 1, x_BD),
      None,
      length=3,
      eos_id=NEVER,
      pad_id=PAD,
      more_segments=(pool.path_segment(slots_BT, depth_B + 1),),
    )
    return (
      slots_NBD.at[n].set(slots_BT),
      depth_NB.at[n].set(depth_B),
      logits_NBV.at[n].set(model.logits(x_BD)),
      tokens_NBT.at[n].set(below.tokens_RT),
      pool.slot,
    )

  # Row NODES is the root: an empty path.
  state = (
    jnp.zeros((NODES + 1, 4, WIDTH), jnp.int32),
    jnp.full((NODES + 1, 4), -1, jnp.int32),
    jnp.zeros((NODES, 4, CONFIG.vocab_size)),
    jnp.zeros((NODES, 4, 3), jnp.int32),
    jnp.int32(0),
  )
  return pool.loop(jax.lax.fori_loop)(0, NODES, body, state)[2:]


@functools.cache
def compiled(pool_type, written=False):
  return jax.jit(lambda: grow(pool_type, written)).lower().compile()


def path(n: int, row: int) -> list[int]:
  tokens = []
  while n != NODES:
    tokens.insert(0, int(TOKEN_NB[n, row]))
    n = PARENT_NB[n, row]
  return tokens


def test_the_pool_equals_plain_forwards_however_it_is_read():
  logits_NBV, tokens_NBT, slot = compiled(kv_pool.KVPool)()
  assert int(slot) == NODES - 1
  others = [compiled(p)() for p in (gathering, ReadFirstPool)]
  others += [compiled(p, True)() for p in POOLS]
  for other_logits_NBV, other_tokens_NBT, _ in others:
    np.testing.assert_allclose(logits_NBV, other_logits_NBV, atol=1e-5)
    np.testing.assert_array_equal(tokens_NBT, other_tokens_NBT)
  assert max(len(path(n, b)) for n in range(NODES) for b in range(4)) > 3
  for n in range(NODES):
    for b in range(4):
      context = [*prompt(b), *path(n, b)]
      expected_V = plain(context)[0][-1]
      np.testing.assert_allclose(logits_NBV[n, b], expected_V, atol=1e-4)
      response = [int(t) for t in tokens_NBT[n, b]]
      expected_TV = plain([*context, *response[:-1]])[0][-3:]
      np.testing.assert_array_equal(response, expected_TV.argmax(-1))


def copies_in_loops(text: str, layer_size: int) -> list[str]:
  """Instructions inside a loop that copy keys of a layer, or of all."""
  sizes = {layer_size, layer_size * CONFIG.num_layers}
  found, in_entry, seen = [], False, 0
  for line in text.splitlines():
    if line.endswith("{"):
      in_entry = line.startswith("ENTRY")
    op = re.search(r"= f32\[([\d,]+)\]\S* ([\w-]+)\(", line)
    if op is None:
      continue
    is_keys = np.prod([int(n) for n in op[1].split(",")]) in sizes
    seen += is_keys
    # The entry may copy the zeros once; that is before the loop.
    if is_keys and not in_entry and re.match("copy|transpose", op[2]):
      found.append(line)
  assert seen, "the compiled text no longer prints shapes as f32[...]"
  return found


def pool_copies(pool_type, written=False) -> list[str]:
  """Instructions that copy a whole pool, or a layer of it, inside a loop."""
  size = NODES * 4 * CONFIG.num_kv_heads * CONFIG.head_dim
  return copies_in_loops(compiled(pool_type, written).as_text(), size)


@pytest.mark.parametrize("written", [False, True])
def test_a_decoding_loop_copies_no_keys(written):
  length = 37

  def run():
    model = nnx.clone(build())
    model.config = dataclasses.replace(CONFIG, unroll_decode=written)
    prefix = prefilled(PROMPT_BP, PAD)
    return sampling.sample(
      model, prefix, None, length=length, eos_id=NEVER, pad_id=PAD
    ).tokens_RT

  text = jax.jit(run).lower().compile().as_text()
  size = 4 * CONFIG.num_kv_heads * length * CONFIG.head_dim
  assert not copies_in_loops(text, size)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("pool_type", POOLS)
def test_the_loop_copies_no_pool(pool_type, written):
  """A copy of the pool a simulation would cost more than the model does."""
  assert not pool_copies(pool_type, written)


def test_reading_before_writing_does_copy_the_pool():
  """Why `KVPool` writes first; if this fails, XLA learned to do without."""
  assert pool_copies(ReadFirstPool)
