"""Reward functions that go wrong in every way; they import no JAX."""

import builtins
import json
import os
import signal
import socket
import sys
import tempfile
import time

import numpy as np

CALLS = []


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
    case "lines":
      raise RuntimeError("one\ntwo \x1b[2J three")
    case "parent":
      return os.getppid() / 2**22
  return example["worth"] * (prompt == "p")


def open_files():
  return [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]


def take_over(prompt, response, example):
  """What led a function astray may do to its process; else the example's worth.

  Nothing in here may signal more than its own process and its parent: where the
  system gives no namespaces, it would be heard by others.
  """
  match response:
    case "fork":
      os.fork()
    case "dumps":
      json.dumps = lambda _: '[[1.0, null, ""]]'
    case "digits":
      json.dumps = lambda _: f"[[{'9' * 400}, null, '']]"
    case "number":
      json.dumps = lambda _: f'[[{"9" * 400}, null, ""]]'
    case "brackets":
      json.dumps = lambda _: "[" * 60_000
    case "float":
      builtins.float = lambda _: 1.0
    case "code":
      take_over.__code__ = (lambda prompt, response, example: 1.0).__code__
    case "write":
      for file in open_files():
        os.write(file, b'[[1.0, null, ""]]\n' * 100)
    case "flood":
      for file in open_files():
        os.write(file, b"[" * 100_000)
    case "half":
      for file in open_files():
        os.write(file, b"[[1.0, nu")
      os.kill(os.getpid(), signal.SIGSTOP)
    case "stop":
      os.kill(os.getpid(), signal.SIGSTOP)
    case "close":
      os.closerange(0, 64)
    case "leave":
      if not os.fork():
        os.setsid()
        if not os.fork():
          time.sleep(3600)
        os._exit(0)
    case "stop the parent" | "kill the parent":
      stop = response.startswith("stop")
      os.kill(os.getppid(), signal.SIGSTOP if stop else signal.SIGKILL)
  return example["worth"]


def count(prompt, response, example):
  """How many calls its process has had; the example says which one hangs."""
  CALLS.append(response)
  if response == example["hangs"]:
    time.sleep(3600)
  return len(CALLS) / 1000


def reach(prompt, response, example):
  """How much of what lies outside of it a function may have."""
  match response:
    case "variables":
      return sum(name in os.environ for name in example) / len(example)
    case "network":
      with socket.create_connection(("127.0.0.1", example), timeout=1):
        return 1.0
    case "files":
      return len([tempfile.TemporaryFile() for _ in range(example)])
    case "size":
      with tempfile.TemporaryFile() as file:
        file.seek(example)
        return file.write(b"1")
    case "processes":
      for count in range(example):
        try:
          if not os.fork():
            time.sleep(3600)
        except OSError:
          return count / example
      return 1.0
    case "privileges":
      with open("/proc/self/status") as file:
        rights = [line.split()[1] for line in file if line[:6] == "CapEff"]
      return float(int(rights[0], 16) > 0)
    case "memory":
      with open(f"/proc/{example}/mem", "rb"):
        return 1.0
    case "signal":
      os.kill(example, 0)
      return 1.0


def sleepy(prompt, response, example):
  """Takes as many seconds as the response says."""
  time.sleep(float(response))
  return 1.0
