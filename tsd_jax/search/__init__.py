"""The tree search: configs, moves, rules, the tree and what is read of it.

The package can be called: `tsd_jax.search(model, prompt, reward)` searches one
prompt (`help(tsd_jax.api.search)`). Python sets `tsd_jax.search` to the package
when anything of it is imported, so a function could not stand there.
"""

import sys
import types
from collections.abc import Callable
from typing import Any


def _function() -> Callable[..., Any]:
  from tsd_jax.api import tree  # Late: it imports JAX, and this package.

  return tree.search


class _Callable(types.ModuleType):
  """A package that stands for the function `tsd_jax.api.tree.search`."""

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return _function()(*args, **kwargs)

  @property
  def __wrapped__(self) -> Callable[..., Any]:
    return _function()  # Its signature is shown, and its documentation.


sys.modules[__name__].__class__ = _Callable
