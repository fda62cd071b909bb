"""A calculator and what grades its users, as a user writes them; no JAX."""

import pathlib
import re
import time


def calculate(prompt, response, example):
  """Answers `<<3*4=` with `12>>`, in units of the example's own."""
  if "log" in example:
    with pathlib.Path(example["log"]).open("a") as file:
      file.write(repr(response) + "\n")
  call = re.search(r"<<(\d+)([*+])(\d+)=$", response)
  if call is None:
    return None
  a, op, b = call.groups()
  value = int(a) * int(b) if op == "*" else int(a) + int(b)
  return f"{value * example['unit']}>>"


def results(prompt, response, example):
  """From -2, no result, to 2: how many of a response's results are wanted."""
  found = re.findall(r"=(\d+)>>", response)
  return min(2, 2 * found.count(str(example["wanted"])) - 2 + len(found) / 2)


def misbehave(prompt, response, example):
  """A tool that does what the response asks for."""
  asked = response.split(";")[-1].rstrip("=")
  match asked:
    case "raise":
      raise RuntimeError("no luck")
    case "hang":
      time.sleep(3600)
    case "number":
      return 12
    case "half":
      return "\ud800"
    case "long":
      return "a" * 5000
    case "many":
      return "a b c d e f g h i j k l m n o p"
    case "end":
      return f"3{example['end']}4"
    case "empty":
      return ""
    case "none":
      return None
  return "12>>"
