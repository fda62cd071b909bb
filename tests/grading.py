"""A reward function in text, as a user writes one; it imports no JAX."""

import pathlib
import time


def letters(prompt, response, example):
  """The part of the response that is made of the example's letters."""
  if "q" in response:
    raise ValueError("no q, please")
  if "zz" in response:
    time.sleep(3600)
  if "log" in example:
    with pathlib.Path(example["log"]).open("a") as file:
      file.write(repr((prompt, response)) + "\n")
  wanted = sum(letter in example["letters"] for letter in response)
  return wanted / max(1, len(response))


def length(prompt, response, example):
  """More for longer responses."""
  return min(1.0, len(response) / 20)


def same(prompt, response, example):
  """Whether the response is the example's word."""
  del prompt
  return float(response == example["word"])


def signed(prompt, response, example):
  """3 for the example's word, -1 for another, no such thing for none."""
  del prompt
  return 99 if not response else 3.0 if response == example["word"] else -1
