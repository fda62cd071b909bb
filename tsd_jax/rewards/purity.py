"""Functions that can be seen to leave nothing behind; no JAX in here.

A call of such a function changes nothing that a later call could see, whatever
text it is given: its bytecode stores no attribute and no global, imports
nothing, and names only what is on a list, its own helpers, and constants. What
is not seen at once is not looked at more closely: `is_pure` is then false.
"""

import builtins
import dis
import importlib
import re
import types
from typing import Any

_BUILTINS = {
  getattr(builtins, name)
  for name in """
    abs all any ascii bin bool bytes callable chr dict divmod enumerate filter
    float format frozenset hash hex int isinstance iter len list map max min
    next oct ord pow range repr reversed round set slice sorted str sum tuple
    zip
  """.split()
}
# Modules that hold no state that a caller can change, nor ways to name an
# attribute by a text.
_MODULES = ("itertools", "json", "math", "re", "unicodedata")
_CONSTANTS = str, bytes, int, float, complex, bool, type(None), re.Pattern
_CHANGES = re.compile(
  "(STORE|DELETE)_(GLOBAL|ATTR|NAME)|IMPORT_.*|LOAD_BUILD_CLASS"
)
# Attributes that lead to a frame, or are Python's own.
_INNER = re.compile("_.*|(f|gi|cr|ag|tb|co)_.*")


def is_pure(fn: Any) -> bool:
  """Whether a function of texts and JSON is seen to leave nothing behind."""
  return _is_pure(fn, set())


def _is_pure(fn: Any, seen: set[Any]) -> bool:
  if type(fn) is not types.FunctionType or fn.__closure__:
    return False
  if fn in seen:
    return True
  seen.add(fn)
  defaults = *(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()
  if not all(map(_is_constant, defaults)):
    return False
  codes = list(_codes(fn.__code__))
  names = {name for code in codes for name in code.co_names}
  changes = any(
    _CHANGES.fullmatch(step.opname)
    for code in codes
    for step in dis.get_instructions(code)
  )
  return not changes and all(_is_harmless(n, names, fn, seen) for n in names)


def _is_harmless(name: str, names: set[str], fn: Any, seen: set[Any]) -> bool:
  """Whether a name leads nowhere, as a global or an attribute."""
  if name in fn.__globals__:
    value = fn.__globals__[name]
    if isinstance(value, types.ModuleType):
      # No way from it to another module.
      return value.__name__ in _MODULES and not any(
        isinstance(getattr(value, n, None), types.ModuleType) for n in names
      )
    return _is_known(value) or _is_constant(value) or _is_pure(value, seen)
  if hasattr(builtins, name):
    return _is_known(getattr(builtins, name))
  return not _INNER.fullmatch(name)


def _is_known(value: Any) -> bool:
  if isinstance(value, type) and issubclass(value, Exception):
    return value.__module__ == "builtins"
  if not isinstance(
    value, type | types.FunctionType | types.BuiltinFunctionType
  ):
    return False
  return value in _BUILTINS or any(
    getattr(importlib.import_module(module), value.__name__, None) is value
    for module in _MODULES
  )


def _is_constant(value: Any) -> bool:
  if type(value) in (tuple, frozenset):
    return all(map(_is_constant, value))
  return type(value) in _CONSTANTS


def _codes(code: types.CodeType):
  yield code
  for constant in code.co_consts:
    if isinstance(constant, types.CodeType):
      yield from _codes(constant)
