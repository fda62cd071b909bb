"""Functions that leave nothing behind are told from those that might."""

import builtins
import functools
import json
import math
import os
import re

import pytest

from tests import grading, misbehaving
from tsd_jax.rewards.purity import is_pure

NUMBER = re.compile(r"-?\d+")
WORDS = ("one", "two")
SEEN = {}


def last_number(text):
  found = NUMBER.findall(text)
  return float(found[-1]) if found else math.nan


def close(prompt, response, example, *, digits=6):
  try:
    wanted = json.loads(example["answer"])
    near = abs(last_number(response) - wanted) < 10**-digits
  except (ValueError, KeyError, TypeError):
    return 0.0
  words = sum(word in response.lower() for word in WORDS)
  return 1.0 if near else min(0.5, max([0.1 * words, 0.0]))


def recursive(prompt, response, example):
  return recursive(prompt, response[1:], example) if response else 0.0


@pytest.mark.parametrize(
  "fn",
  [grading.same, grading.length, grading.signed, close, recursive,
   lambda p, r, e: sum(c in e for c in r) / len(r)],
)  # fmt: skip
def test_a_plain_function_is_seen_to_be_pure(fn):
  assert is_pure(fn)


def remembers(prompt, response, example):
  SEEN[response] = SEEN.get(response, 0) + 1
  return SEEN[response] > 1


def by_default(prompt, response, example, seen=[]):  # noqa: B006
  seen.append(response)
  return len(seen)


def counts(prompt, response, example):
  counts.calls = 1


def imports(prompt, response, example):
  import os

  return os.getpid()


def stores(prompt, response, example):
  global WORDS
  WORDS = ()


def helped(prompt, response, example):
  return remembers(prompt, response, example)


def inner(prompt, response, example):
  return max(response, key=lambda c: builtins.eval(c))


def frames(prompt, response, example):
  return (c for c in response).gi_frame.f_back


def dunder(prompt, response, example):
  helped.__globals__["WORDS"] = ()


def of_a_module(prompt, response, example):
  return re.enum.sys


def makes_a_class(prompt, response, example):
  class Answer:
    pass

  return Answer is None


def writes(prompt, response, example):
  print(response)


@functools.lru_cache
def kept(prompt, response, example):
  return 0.0


class Called:
  def __call__(self, prompt, response, example):
    return 0.0


def closed(calls):
  return lambda prompt, response, example: calls.append(response)


@pytest.mark.parametrize(
  "fn",
  [remembers, by_default, counts, imports, stores, helped, inner, frames,
   dunder, of_a_module, makes_a_class, writes, kept, Called(), closed([]),
   lambda p, r, e: eval(r), lambda p, r, e: getattr(p, r),
   lambda p, r, e: os.getpid(), lambda p, r, e: type(p), os.getenv,
   misbehaving.misbehave, misbehaving.take_over, grading.letters],
)  # fmt: skip
def test_a_function_that_might_leave_something_behind_is_not(fn):
  assert not is_pure(fn)
