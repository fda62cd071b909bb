"""Keys of a row's own tokens are written where they lie."""

import dataclasses

import jax
import pytest
from flax import nnx

from tests import shipped
from tests.small_model import (
  CONFIG,
  NEVER,
  PAD,
  PROMPT_BP,
  build,
  copies_in_loops,
  prefilled,
)
from tsd_jax.inference import sampling

pytestmark = pytest.mark.usefixtures("strict_ranks")


@pytest.mark.parametrize("written", [False, True])
def test_a_decoding_loop_copies_no_keys(written):
  length = 37

  def run():
    model = nnx.clone(build())
    model.config = dataclasses.replace(CONFIG, unroll_decode=written)
    prefix = prefilled(PROMPT_BP, PAD)
    return sampling.sample(
      model, prefix, None, length=length, end_ids=(NEVER,), pad_id=PAD
    ).tokens_RT

  text = shipped.compiled(jax.jit(run).lower()).as_text()
  size = 4 * CONFIG.num_kv_heads * length * CONFIG.head_dim
  assert not copies_in_loops(text, size)
