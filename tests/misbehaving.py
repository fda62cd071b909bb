"""A reward function that goes wrong in every way; it imports no JAX."""

import os
import signal
import sys
import time

import numpy as np


def misbehave(prompt, response, example):
  """What a response asks for; this runs in a worker."""
  match response:
    case "raise":
      raise RuntimeError("no such \ud800 luck")
    case "exit":
      sys.exit(0)
    case "hang":
      while True:
        pass
    case "sleep":
      time.sleep(3600)
    case "power":
      return eval("9**9**9")
    case "memory":
      return len(bytearray(8 * 2**30))
    case "die":
      os._exit(0)
    case "crash":
      os.kill(os.getpid(), signal.SIGSEGV)
    case "nan" | "inf" | "-inf":
      return float(response)
    case "text":
      return "1.0"
    case "none":
      return None
    case "huge":
      return 10**400
    case "negative":
      return -0.25
    case "two":
      return 2
    case "print":
      print("[1.0, null, '']" * 10_000, flush=True)
      return 0.5
    case "true":
      return True
    case "numpy":
      return np.float32(0.25)
    case "pid":
      return os.getpid() / 2**22
  return example["worth"] * (prompt == "p")
