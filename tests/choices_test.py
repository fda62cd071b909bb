"""A word that no field knows is refused by name, wherever in a config."""

import dataclasses

import pytest

from experiments import countdown
from tests import small_game
from tsd_jax.base import choices
from tsd_jax.learning.loss_terms import LossTerm

BASE = countdown.get_config()


@pytest.mark.parametrize(
  ("part", "field", "known"),
  [
    ("loss", "policy", "ppo, cispo"),
    ("loss", "advantage", "tree, prefix, group, centred, gae"),
    ("loss", "champion_source", "search, samples"),
    ("loss", "champion_gate", "correct, better, quantile"),
    ("search", "leaf", "none, value, rollout, mix, progress"),
    ("search", "step_prior", "draws, log_prob"),
    ("rollout", "choose", "first, uncertain"),
    ("mesh", "serving", "tensor, 2d"),
    ("model", "compute_dtype", "float32, bfloat16"),
  ],
)
@pytest.mark.parametrize("value", ["correctt", "Correct", "", None, 3])
def test_a_mistyped_word_is_refused(part, field, known, value):
  with pytest.raises(ValueError) as error:
    changed = dataclasses.replace(getattr(BASE, part), **{field: value})
    dataclasses.replace(BASE, **{part: changed})
  assert str(error.value) == f"{part}.{field}={value} must be one of {known}"


def test_an_unknown_method_and_a_term_that_reads_nothing_are_refused():
  with pytest.raises(
    ValueError, match="^algorithm=tds must be one of tsd, ppo"
  ):
    dataclasses.replace(BASE, algorithm="tds")
  term = LossTerm("mine", "sample", lambda x: (x, {}))  # type: ignore
  loss = dataclasses.replace(BASE.loss, terms=(term,))
  with pytest.raises(ValueError, match="^loss.terms.reads=sample must be one"):
    dataclasses.replace(BASE, loss=loss)


@pytest.mark.parametrize("config", [BASE, small_game.get_config()])
def test_what_is_known_passes(config):
  assert not list(choices.violations(config))
