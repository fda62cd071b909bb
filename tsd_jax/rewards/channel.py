"""Lines over a socket, each sent and received before a deadline."""

import collections
import select
import socket
import time

LONGEST = 2**16  # Bytes of a line that is received.


class Channel:
  """One end of a socket pair, which waits for the other no longer than told.

  What is sent is a line of bytes without its end. A peer that stops in the
  middle of one, or never reads, costs no more than the deadline.
  """

  def __init__(self, end: socket.socket, longest: int | None = LONGEST):
    """Takes the end over.

    Args:
      end: of a pair of stream sockets.
      longest: bytes of a line; None where the peer is trusted.
    """
    end.setblocking(False)
    self._end, self._longest = end, longest
    self._lines: collections.deque[bytes] = collections.deque()
    self._begun: list[bytes] = []  # Parts of the line that has not ended.
    self._size = 0

  def send(self, line: bytes, seconds: float | None) -> None:
    """Sends a line.

    Raises:
      TimeoutError: the peer did not take it in time.
      OSError: the peer is gone.
    """
    deadline = _deadline(seconds)
    left = memoryview(line + b"\n")
    while left:
      try:
        left = left[self._end.send(left) :]
      except BlockingIOError:
        self._wait(select.POLLOUT, deadline)

  def receive(self, seconds: float | None) -> bytes:
    """The next line.

    Raises:
      TimeoutError: it did not come in time.
      EOFError: the peer is gone.
      ValueError: it is too long.
    """
    deadline = _deadline(seconds)
    while not self._lines:
      try:
        chunk = self._end.recv(2**16)
      except BlockingIOError:
        self._wait(select.POLLIN, deadline)
        continue
      except ConnectionError:
        chunk = b""
      if not chunk:
        raise EOFError("nobody is there")
      self._take(chunk)
    return self._lines.popleft()

  def _take(self, chunk: bytes) -> None:
    first, *others = chunk.split(b"\n")
    self._begun.append(first)
    self._size += len(first)
    if others:
      *lines, last = others
      self._lines += [b"".join(self._begun), *lines]
      self._begun, self._size = [last], len(last)
    if self._longest is not None and self._size > self._longest:
      raise ValueError(f"a line of more than {self._longest} bytes")

  def close(self) -> None:
    """Closes the end."""
    self._end.close()

  def _wait(self, event: int, deadline: float | None) -> None:
    # Not `select`, which knows no file descriptor above 1023.
    poll = select.poll()
    poll.register(self._end, event)
    left = None if deadline is None else deadline - time.monotonic()
    if left is not None and left <= 0:
      raise TimeoutError("nothing in time")
    if not poll.poll(None if left is None else 1000 * left):
      raise TimeoutError("nothing in time")


def _deadline(seconds: float | None) -> float | None:
  return None if seconds is None else time.monotonic() + seconds
