"""Lines over a socket: nobody waits longer than told."""

import socket
import threading
import time

import pytest

from tsd_jax.rewards.channel import Channel


@pytest.fixture
def ends():
  pair = socket.socketpair()
  yield pair
  for end in pair:
    end.close()


def test_lines_arrive_whole_and_in_order_however_they_are_cut(ends):
  ours, theirs = Channel(ends[0]), ends[1]
  text = b"".join(b"%d\n" % i for i in range(200)) + b"\n"
  for i in range(0, len(text), 7):
    theirs.sendall(text[i : i + 7])
  got = [ours.receive(1.0) for _ in range(201)]
  assert got == [b"%d" % i for i in range(200)] + [b""]


def test_a_long_line_goes_both_ways(ends):
  ours, theirs = (Channel(end, None) for end in ends)
  line = b"a" * 10_000_000
  echo = threading.Thread(target=lambda: theirs.send(theirs.receive(30), 30))
  echo.start()
  ours.send(line, 30)
  assert ours.receive(30) == line
  echo.join()


def test_who_sends_half_a_line_or_reads_nothing_is_not_waited_for(ends):
  ours = Channel(ends[0])
  ends[1].sendall(b"half")
  for wait in lambda: ours.receive(0.2), lambda: ours.send(b"a" * 10**7, 0.2):
    started = time.monotonic()
    with pytest.raises(TimeoutError):
      wait()
    assert 0.15 < time.monotonic() - started < 5


def test_a_line_without_end_is_not_read_to_its_end(ends):
  ours = Channel(ends[0], longest=1000)
  ends[1].sendall(b"[" * 10_000)
  with pytest.raises(ValueError, match="more than 1000 bytes"):
    ours.receive(1.0)


def test_whoever_has_gone_is_missed(ends):
  ours = Channel(ends[0])
  ends[1].sendall(b"last\n")
  ends[1].close()
  assert ours.receive(1.0) == b"last"
  with pytest.raises(EOFError):
    ours.receive(None)
