"""A `SearchConfig` from flat settings: those of the rule beside the others."""

import dataclasses

from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.config import SearchConfig
from tsd_jax.search.rules import PUCT, Gumbel

RULES = {"best_first": BestFirst, "puct": PUCT, "gumbel": Gumbel}


def flat_search(rule: str = "best_first", **settings) -> SearchConfig:
  """A search by a rule's name; its fields may stand among the settings."""
  cls = RULES[rule]
  names = {field.name for field in dataclasses.fields(cls)}
  own = {name: settings.pop(name) for name in names & settings.keys()}
  return SearchConfig(cls(**own), **settings)
