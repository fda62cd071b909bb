"""One command on every worker of a Cloud TPU slice, through gcloud.

Steps run one by one and may be repeated, so that a broken connection loses
nothing: `create` reuses a slice that is there, `start` detaches the run,
`stream` looks at it again. What happens on a worker is in
`launch/pod_worker.sh`. Nothing here imports JAX.
"""

import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from tsd_jax.base import output_files, paths
from tsd_jax.base.errors import UserError
from tsd_jax.base.paths import ROOT

# https://cloud.google.com/tpu/docs/runtimes; tpu7x is offered by GKE only.
_RUNTIMES = {
  "v6e": "v2-alpha-tpuv6e",
  "v5litepod": "v2-alpha-tpuv5-lite",
  "v5p": "v2-alpha-tpuv5",
  "v4": "tpu-ubuntu2204-base",
}
STEPS = (
  "create",
  "sync",
  "install",
  "start",
  "stream",
  "collect",
  "interrupt",
  "stop",
  "delete",
)
DEFAULT_STEPS = STEPS[:6]
_WORKER = "bash tsd_jax/src/launch/pod_worker.sh"
_OUT_OF_LINE = ("FAILED", "SUSPENDING", "SUSPENDED")
_PASSING = ("CREATING", "STARTING", "STOPPING", "DELETING")
_GONE = ("PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "DELETING", "")


class PodError(UserError):
  """A worker failed, or gcloud did."""

  exit_code = 1


class Unavailable(UserError):
  """Quota or capacity does not suffice (EX_UNAVAILABLE)."""

  exit_code = 69


class Preempted(UserError):
  """The slice was taken away; the same command goes on (EX_TEMPFAIL)."""

  exit_code = 75


@dataclasses.dataclass(frozen=True)
class Pod:
  """A slice: where it is and how it is made."""

  tpu: str
  zone: str
  project: str | None = None
  accelerator_type: str | None = None  # Only needed to create it.
  runtime_version: str | None = None
  spot: bool = False
  queued: bool = False  # Through a queued resource of the same name.

  def __post_init__(self):
    """Refuses names that gcloud would read as something else."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, str):
        plain(field.name, value)

  @property
  def runtime(self) -> str:
    """Software version of the machine image.

    Raises:
      UserError: if none is known for the accelerator.
    """
    if self.runtime_version:
      return self.runtime_version
    kind = (self.accelerator_type or "").partition("-")[0]
    if kind not in _RUNTIMES:
      raise UserError(
        f"--accelerator_type={self.accelerator_type} is none of "
        f"{', '.join(_RUNTIMES)} with -CHIPS or -CORES behind: name its "
        "--runtime_version"
      )
    return _RUNTIMES[kind]


class Launcher:
  """Runs steps on a slice; with `dry_run` it prints commands instead."""

  def __init__(self, pod: Pod, *, dry_run: bool = False, poll: float = 30.0):
    """Does nothing yet.

    Args:
      pod: the slice.
      dry_run: print every command, run none; the slice is taken to be absent.
      poll: seconds between looks at a queued resource.
    """
    self.pod = pod
    self._dry_run, self._poll = dry_run, poll

  def create(self) -> None:
    """Reuses the slice, starts a stopped one, or makes it.

    Raises:
      Unavailable, PodError: if there is none in the end.
    """
    state = self._settled()
    if state == "READY":
      return _say(f"{self.pod.tpu} is ready and reused")
    if state == "STOPPED":
      self._gcloud("tpu-vm", "start", self.pod.tpu)
      return None
    if state in ("PREEMPTED", "TERMINATED"):
      _say(f"{self.pod.tpu} was preempted: it is deleted and made again")
      self.delete()
    elif state:
      raise PodError(
        f"{self.pod.tpu} is {state}: wait until it is READY, or delete it with "
        "--steps=delete"
      )
    if not self.pod.accelerator_type:
      raise UserError(
        f"there is no TPU {self.pod.tpu} in {self.pod.zone}: give "
        "--accelerator_type (say v5litepod-16) to create it"
      )
    spot = ["--spot"] if self.pod.spot else []
    kind = f"--accelerator-type={self.pod.accelerator_type}"
    if not self.pod.queued:
      version = f"--version={self.pod.runtime}"
      self._gcloud("tpu-vm", "create", self.pod.tpu, kind, version, *spot)
      return None
    place = self._describe("queued-resources", "state.state")
    if place in _OUT_OF_LINE:
      _say(f"the queued resource {self.pod.tpu} is {place}: it is made again")
      self.delete()
      place = ""
    if not place:
      self._gcloud(
        *("queued-resources", "create", self.pod.tpu),
        f"--node-id={self.pod.tpu}",
        kind,
        f"--runtime-version={self.pod.runtime}",
        *spot,
      )
    return self._wait_in_queue()

  def _settled(self) -> str:
    """The slice's state, once it is none on the way to another."""
    told = ""
    while (state := self._describe("tpu-vm", "state")) in _PASSING:
      if state != told:
        _say(f"{self.pod.tpu} is {state}: waiting")
        told = state
      time.sleep(self._poll)
    return state

  def _wait_in_queue(self) -> None:
    told = None
    while True:
      state = self._describe("queued-resources", "state.state", "ACTIVE")
      if state == "ACTIVE":
        return
      if state in _OUT_OF_LINE:
        raise Unavailable(
          f"the queued resource {self.pod.tpu} is {state}: run --steps=delete, "
          "then try again, another zone, or another --accelerator_type"
        )
      if state != told:
        _say(f"queued resource {self.pod.tpu}: {state}")
        told = state
      time.sleep(self._poll)

  def sync(self, commit: str) -> None:
    """Puts the files of a commit on every worker.

    Raises:
      UserError: if the commit does not exist.
    """
    plain("commit", commit)
    with tempfile.TemporaryDirectory() as folder:
      archive = pathlib.Path(folder) / "tsd_jax.tar.gz"
      git = ["git", "-C", str(ROOT), "archive", "--format=tar.gz"]
      if self._dry_run:
        archive = pathlib.Path("tsd_jax.tar.gz")
      self._run([*git, f"--output={archive}", commit])
      self._scp(str(archive), f"{self.pod.tpu}:tsd_jax.tar.gz", "--worker=all")
    self._ssh(
      # Never under the feet of a run.
      "if kill -0 $(cat tsd_jax/pid 2>/dev/null) 2>/dev/null; then"
      " echo 'a run is going on: --steps=stream,collect looks at it,"
      " --steps=interrupt ends it' >&2; exit 1; fi"
      " && rm -rf tsd_jax/src && mkdir -p tsd_jax/src"
      " && tar -xzf tsd_jax.tar.gz -C tsd_jax/src"
    )

  def install(self) -> None:
    """Installs the lock of the synced code on every worker."""
    self._ssh(f"{_WORKER} install")

  def start(self, arguments: Sequence[str]) -> None:
    """Starts `python ARGUMENTS` on every worker and returns."""
    self._ssh(f"{_WORKER} start {shlex.join(arguments)}")

  def stream(self, tries: int = 5) -> None:
    """Shows worker 0's log until the run ends, then reads all exit codes.

    Raises:
      Preempted: if the slice went away meanwhile.
      PodError: naming the workers that failed, with the end of a log.
    """
    line, broken = 1, 0
    while True:
      command = f"{_WORKER} follow {line}"
      code, lines = self._show(self._ssh_line(command, worker="0"))
      line += lines
      if code == 0:
        break
      self._check_alive()
      broken = 1 if lines else broken + 1  # In a row: a run may take days.
      if broken == tries:
        raise PodError(
          f"the connection to worker 0 of {self.pod.tpu} broke {tries} times; "
          "the run may go on: --steps=stream,collect looks again"
        )
      _say(f"the connection broke (exit code {code}): trying again")
      time.sleep(min(self._poll, 5.0))
    self._check_results()

  def _check_results(self) -> None:
    with tempfile.TemporaryDirectory() as folder:
      where = "LOGS" if self._dry_run else folder
      self._ssh(f"{_WORKER} result", f"--output-directory={where}")
      results = {}
      for file in sorted(pathlib.Path(folder).glob("*.log")):
        code, _, log = file.read_text().partition("\n")
        results[file.stem] = (code.strip(), log)
    if self._dry_run:
      return
    bad = {w: r for w, r in results.items() if r[0] != "0"}
    if not bad:
      return _say(f"all {len(results)} workers ended well")
    self._check_alive()
    # A worker that broke ends the others: the first own error tells more.
    worker = min(bad, key=lambda w: (bad[w][0] in ("-6", "134"), int(w)))
    codes = ", ".join(f"worker {w}: {code}" for w, (code, _) in bad.items())
    print(bad[worker][1].rstrip(), file=sys.stderr)
    if all(code == "143" for code, _ in bad.values()):
      raise Preempted(
        f"the run was told to stop and saved ({codes}); the same command goes "
        "on from there"
      )
    raise PodError(
      f"{len(bad)} of {len(results)} workers failed (exit codes: {codes}); "
      f"above is the end of worker {worker}'s log, all of it is in "
      f"tsd_jax/log there; {self.pod.tpu} is kept and costs money until "
      "--steps=delete"
    )

  def collect(self, remote: str, local: str) -> None:
    """Copies the run's folder from worker 0.

    Raises:
      UserError: for a path that is no plain word.
    """
    plain("workdir", remote)
    paths.refuse_address(remote)
    plain("collect", local)
    if not self._dry_run:
      with output_files.writing(f"--collect={local}"):
        paths.named(local).mkdir(parents=True, exist_ok=True)
    # ssh starts in the home folder, a run in the code's.
    if not remote.startswith(("/", "~")):
      remote = f"tsd_jax/src/{remote}"
    self._scp("--recurse", f"{self.pod.tpu}:{remote}", local, "--worker=0")

  def interrupt(self) -> None:
    """Asks the run on every worker to save and stop."""
    self._ssh(f"{_WORKER} interrupt")

  def stop(self) -> None:
    """Stops the machines; their disks stay. Slices of many hosts cannot."""
    self._gcloud("tpu-vm", "stop", self.pod.tpu)

  def delete(self) -> None:
    """Deletes the slice, and the queued resource that made it."""
    if self.pod.queued:
      self._gcloud(
        "queued-resources", "delete", self.pod.tpu, "--force", "--quiet"
      )
    else:
      self._gcloud("tpu-vm", "delete", self.pod.tpu, "--quiet")

  def _describe(self, kind: str, field: str, assume: str = "") -> str:
    """A state of the slice or its queued resource; empty if it is not there."""
    try:
      text = self._gcloud(
        kind, "describe", self.pod.tpu, f"--format=value({field})",
        assume=assume,
      )  # fmt: skip
    except PodError as error:
      if "NOT_FOUND" in str(error):
        return ""
      raise
    return text.strip()

  def _check_alive(self) -> None:
    """Raises `Preempted` if the slice is no longer there."""
    state = self._describe("tpu-vm", "state")
    if state in _GONE:
      raise Preempted(
        f"{self.pod.tpu} was taken away (now {state or 'deleted'}); the same "
        "command makes it again and resumes from the last checkpoint, if "
        "--workdir lies on storage that outlives the machines"
      )

  def _ssh_line(self, command: str, worker: str, *flags: str) -> list[str]:
    return self._line(
      "tpu-vm", "ssh", self.pod.tpu, f"--worker={worker}", *flags,
      f"--command={command}",
    )  # fmt: skip

  def _ssh(self, command: str, *flags: str) -> None:
    self._reach(self._ssh_line(command, "all", *flags))

  def _scp(self, *arguments: str) -> None:
    self._reach(self._line("tpu-vm", "scp", *arguments))

  def _reach(self, line: list[str]) -> None:
    """Runs a command that wants a worker; says if there is none any more."""
    try:
      self._run(line)
    except PodError:
      self._check_alive()
      raise

  def _line(self, *arguments: str) -> list[str]:
    where = [f"--zone={self.pod.zone}"]
    if self.pod.project:
      where.append(f"--project={self.pod.project}")
    return ["gcloud", "compute", "tpus", *arguments, *where]

  def _gcloud(self, *arguments: str, assume: str = "") -> str:
    return self._run(self._line(*arguments), assume=assume)

  def _run(self, line: list[str], assume: str = "") -> str:
    """Runs a command; returns its output, or `assume` in a dry run."""
    if self._dry_run:
      print(shlex.join(line))
      return assume
    try:
      done = subprocess.run(
        line, stdin=subprocess.DEVNULL, capture_output=True, text=True
      )
    except FileNotFoundError:
      raise UserError(f"{line[0]} is not installed or not on PATH") from None
    if done.returncode == 0:
      return done.stdout
    words = done.stderr.strip()
    what = " ".join(line[:5] if line[0] == "gcloud" else line[:1])
    if line[0] == "git":
      raise UserError(f"git: {words}")
    low = words.lower()
    if "quota" in low or "resource_exhausted" in low or "capacity" in low:
      raise Unavailable(
        f"{what}: {words.splitlines()[-1]} -- ask for more quota of "
        f"{self.pod.accelerator_type} in {self.pod.zone}, try another zone, "
        "--spot, or wait in line with --queued"
      )
    raise PodError(
      f"{what} failed with exit code {done.returncode}: {words[-2000:]}"
    )

  def _show(self, line: list[str]) -> tuple[int, int]:
    """Runs a command with its output shown; returns exit code and lines."""
    if self._dry_run:
      print(shlex.join(line))
      return 0, 0
    lines = 0
    with subprocess.Popen(
      line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
      for text in process.stdout or ():
        lines += 1
        sys.stdout.write(text)
        sys.stdout.flush()
    return process.returncode, lines


def plain(flag: str, value: str) -> str:
  """A value that gcloud and git read as no option, and a shell as one word.

  Quotes would not do for paths: whether `scp` hands them to a shell depends on
  its version.

  Raises:
    UserError: it begins with a dash, or holds other characters.
  """
  if not re.fullmatch(r"[\w./~^@:+=,][\w./~^@:+=,-]*", value, re.ASCII):
    raise UserError(
      f"--{flag}={value!r} must begin with no dash and hold only letters, "
      "digits and ./~^@:+=,_-"
    )
  return value


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
