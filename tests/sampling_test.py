"""Sampling against plain full forwards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_model import (
  CONFIG,
  EOS,
  NEVER,
  PAD,
  PROMPT_BP,
  build,
  plain,
  prefilled,
  prompt,
)
from tsd_jax.inference import prefill, sampling

LENGTH = 10


pytestmark = pytest.mark.usefixtures("strict_ranks")


@functools.partial(jax.jit, static_argnames=("group", "length", "end_ids"))
def draw(
  prompt_BP, pad_id, keys_R, *, group=1, end_ids=(EOS,), temperature=1.0,
  fork=None, room_R=None, length=LENGTH,
):  # fmt: skip
  model = build()
  prefix = prefilled(prompt_BP, pad_id)
  return sampling.sample(
    model, prefill.repeat_rows(prefix, group), keys_R, length=length,
    end_ids=end_ids, pad_id=PAD, temperature=temperature, fork=fork,
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


def test_greedy_is_an_argmax_loop_and_stops_at_every_end_token():
  def loop(context, end_ids):
    tokens = []
    while len(tokens) < LENGTH and not {*end_ids} & {*tokens}:
      tokens.append(int(plain([*context, *tokens])[0][-1].argmax()))
    return tokens + [PAD] * (LENGTH - len(tokens))

  free = draw(PROMPT_BP, PAD, None, end_ids=(NEVER,))
  expected = [loop(prompt(b), ()) for b in range(4)]
  np.testing.assert_array_equal(free.tokens_RT, expected)
  # Now let tokens that rows 0 and 1 did emit be end tokens.
  for end_ids in ((expected[0][2],), (expected[0][2], expected[1][1])):
    ended = draw(PROMPT_BP, PAD, None, end_ids=end_ids)
    rows = [loop(prompt(b), end_ids) for b in range(4)]
    np.testing.assert_array_equal(ended.tokens_RT, rows)


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
  sampled = draw(PROMPT_BP, PAD, None, end_ids=(NEVER,), room_R=room_R)
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
  whole = draw(PROMPT_BP, PAD, None, end_ids=(NEVER,))
  length_R = np.array([1, 4, 9, 10])
  fork = fork_at(whole, np.arange(4), length_R)
  tail = draw(PROMPT_BP, PAD, None, end_ids=(NEVER,), fork=fork)
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
  first = draw(PROMPT_BP, PAD, split(5, 8), group=group, end_ids=(NEVER,))
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
