"""Prompts through the model against plain full forwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_model import (
  CONFIG,
  PAD,
  PROMPT_BP,
  PROMPT_LENGTH_B,
  build,
  plain,
  prefilled,
  prompt,
)
from tsd_jax.base.types import Media, PromptForm, Prompts
from tsd_jax.inference import prefill, scoring

pytestmark = pytest.mark.usefixtures("strict_ranks")


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


# Prompts of several lengths whose first two tokens are alike, and pictures:
# several in one, one in the padding, at the last token, next to each other,
# and places for more that stand nowhere.
MEDIA_LENGTH_B = np.array([4, 9, 3, 7])
POSITION_BJ = np.array([[2, 6, 9], [4, 3, 8], [2, 9, 99], [99, 99, 99]])


def with_media(length_B):
  """Prompts of given lengths with embeddings at some of their positions."""
  rng = np.random.default_rng(9)
  tokens_BP = rng.integers(0, 11, (4, 9)).astype(np.int32)
  tokens_BP[:, :2] = 5, 8
  tokens_BP[np.arange(9)[None] >= length_B[:, None]] = PAD
  embedding_BJD = rng.normal(size=(4, 3, CONFIG.d_model)).astype(np.float32)
  return Prompts(
    jnp.asarray(tokens_BP),
    jnp.asarray(length_B),
    jnp.arange(4),
    Media(jnp.asarray(embedding_BJD), jnp.asarray(POSITION_BJ)),
  )


def replaced_by_hand(prompts, row, tokens):
  """Logits after each token of a row, embeddings put in their places."""
  model, media = build(), jax.device_get(prompts.media)
  x_TD = np.asarray(model.embedding_VD[...])[np.array(tokens)]
  for x_D, at in zip(
    media.embedding_BJD[row], media.position_BJ[row], strict=True
  ):
    if at < int(prompts.length_B[row]):
      x_TD[at] = x_D
  positions_1T = jnp.arange(len(tokens))[None]
  x_1TD = model.trunk(jnp.asarray(x_TD)[None], positions_1T).x_RTD
  return np.asarray(model.logits(x_1TD)[0])


@pytest.mark.parametrize("head", [0, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_media_stand_in_place_of_their_tokens(padded, head):
  length_B = MEDIA_LENGTH_B if padded else np.full(4, 9)
  prompts, form = with_media(length_B), PromptForm(padded, head)
  tokens_BGT = np.random.default_rng(3).integers(0, 11, (4, 2, 4))

  @jax.jit
  def run(prompts):
    prefix = prefill.prefill(build(), prompts, form)
    x_BGTD = scoring.hidden_states(build(), prompts, tokens_BGT, form)
    return prefix.length_B, *map(build().logits, (prefix.x_BD, x_BGTD))

  read_B, logits_BV, logits_BGTV = run(prompts)
  np.testing.assert_array_equal(read_B, length_B)
  for b, n in enumerate(length_B):
    asked = prompts.tokens_BP[b, :n].tolist()
    expected_TV = replaced_by_hand(prompts, b, asked)
    np.testing.assert_allclose(logits_BV[b], expected_TV[-1], atol=1e-4)
    for g in range(2):
      whole = [*asked, *tokens_BGT[b, g].tolist()]
      expected_TV = replaced_by_hand(prompts, b, whole)[n - 1 : -1]
      np.testing.assert_allclose(logits_BGTV[b, g], expected_TV, atol=1e-4)
    # Of a prompt without any, the embeddings are those of its tokens.
    bare_TV, seen = plain(asked)[0], np.any(POSITION_BJ[b] < n)
    assert np.allclose(logits_BV[b], bare_TV[-1], atol=1e-4) == (not seen)


def test_media_go_with_their_prompts():
  """Chosen, repeated and cut, a prompt keeps its own."""
  prompts, order = with_media(MEDIA_LENGTH_B), np.array([1, 3, 0])

  @jax.jit
  def run(prompts):
    prefix = prefill.prefill(build(), prompts, PromptForm(padded=True))
    return build().logits(prefix.x_BD)

  logits_BV, some_BV, twice_BV = map(
    run, (prompts, prompts[order], prompts.repeat(2))
  )
  np.testing.assert_allclose(some_BV, logits_BV[order], atol=1e-5)
  np.testing.assert_allclose(
    twice_BV, np.repeat(logits_BV, 2, axis=0), atol=1e-5
  )


def test_media_outside_of_the_tokens_that_are_embedded_are_left_out():
  """None of them wraps around to the end, as negative indices would."""
  prompts = with_media(MEDIA_LENGTH_B)
  moved_BJ = jnp.array([[-1, -9, 9], [-2, 3, 10], [0, -1, -1], [8, -8, -9]])
  media = prompts.media._replace(position_BJ=moved_BJ)
  got_BPD = build().embed(prompts.tokens_BP, media)
  expected_BPD = np.array(build().embed(prompts.tokens_BP))
  for b, j, at in ((1, 1, 3), (2, 0, 0), (3, 0, 8)):
    expected_BPD[b, at] = media.embedding_BJD[b, j]
  np.testing.assert_array_equal(got_BPD, expected_BPD)
