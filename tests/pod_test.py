"""launch.tpu_pod against a gcloud that records calls and fails on demand."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAVES = "mkdir -p runs/one; echo 1 > runs/one/metrics.jsonl"


class Cloud:
  """A folder that plays Cloud TPU."""

  def __init__(self, folder):
    self.folder = folder
    (folder / "bin").mkdir()
    gcloud = folder / "bin" / "gcloud"
    script = ROOT / "tests" / "fake_gcloud.py"
    gcloud.write_text(f'#!/bin/bash\nexec "{sys.executable}" "{script}" "$@"\n')
    gcloud.chmod(0o755)
    self.plan()

  def plan(self, *fail, workers=2, run=None):
    run = run or dict.fromkeys("01", SAVES)
    plan = {"workers": workers, "fail": fail, "run": run}
    (self.folder / "plan.json").write_text(json.dumps(plan))

  def launch(self, *flags):
    line = [
      sys.executable, "-m", "launch.tpu_pod", "--tpu=mine", "--zone=us-west4-a",
      "--accelerator_type=v5litepod-16", "--workdir=runs/one", "--poll=0.01",
      f"--collect={self.folder}/got", *flags,
    ]  # fmt: skip
    environment = os.environ | {
      "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
      "FAKE_GCLOUD": str(self.folder),
    }
    return subprocess.run(
      line, cwd=ROOT, env=environment, capture_output=True, text=True,
      timeout=120, check=False,
    )  # fmt: skip

  def calls(self):
    """What was called, without the part that all calls share."""
    file = self.folder / "calls.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    calls = [json.loads(line) for line in lines]
    assert all(c[:2] == ["compute", "tpus"] for c in calls)
    assert all("--zone=us-west4-a" in c for c in calls)
    return calls

  def verbs(self):
    return [
      f"{c[2]} {c[3]}" if c[3] != "ssh" else "ssh " + worker_step(c)
      for c in self.calls()
    ]


def worker_step(call):
  command = next(a for a in call if a.startswith("--command="))
  words = command.removeprefix("--command=").split()
  return words[2] if "pod_worker.sh" in command else "unpack"


@pytest.fixture
def cloud(tmp_path):
  return Cloud(tmp_path)


WHOLE = [
  "tpu-vm describe",
  "tpu-vm create",
  "tpu-vm scp",
  "ssh unpack",
  "ssh install",
  "ssh start",
  "ssh follow",
  "ssh result",
  "tpu-vm scp",
]


def test_a_run_goes_through_every_step_on_every_worker(cloud):
  done = cloud.launch("--config.seed=3", "--spot", "--project=p")
  assert done.returncode == 0, done.stderr
  assert cloud.verbs() == WHOLE
  assert all("--project=p" in call for call in cloud.calls())
  assert "--spot" in cloud.calls()[1]
  assert "--version=v2-alpha-tpuv5-lite" in cloud.calls()[1]
  ran = "ran -m launch.train --distributed --max_restarts=10"
  for worker in (0, 1):
    home = cloud.folder / f"worker-{worker}" / "tsd_jax"
    log = (home / "log").read_text()
    assert log.startswith(ran) and "--config.seed=3" in log
    # What is run is the commit, whole.
    here = (ROOT / "launch" / "train.py").read_text()
    assert (home / "src" / "launch" / "train.py").read_text() == here
  assert ran in done.stdout  # Worker 0's log is shown.
  assert (cloud.folder / "got" / "one" / "metrics.jsonl").is_file()


def test_a_slice_that_is_there_is_reused_and_deleted_when_told(cloud):
  assert cloud.launch("--steps=create").returncode == 0
  done = cloud.launch("--steps=create,delete")
  assert done.returncode == 0 and "reused" in done.stderr
  assert cloud.verbs() == [
    *("tpu-vm describe", "tpu-vm create", "tpu-vm describe", "tpu-vm delete")
  ]
  assert "--quiet" in cloud.calls()[-1]  # Nobody is there to say yes.


def test_a_stopped_slice_is_started(cloud):
  assert cloud.launch("--steps=create,stop,create").returncode == 0
  assert cloud.verbs()[2:] == ["tpu-vm stop", "tpu-vm describe", "tpu-vm start"]


def test_a_queued_resource_is_waited_for(cloud):
  done = cloud.launch("--steps=create", "--queued")
  assert done.returncode == 0, done.stderr
  assert "WAITING_FOR_RESOURCES" in done.stderr
  create = cloud.calls()[2]
  assert create[2:4] == ["queued-resources", "create"]
  assert "--node-id=mine" in create
  assert cloud.verbs()[3:] == ["queued-resources describe"] * 3


def test_a_dead_queued_resource_is_made_again(cloud):
  (cloud.folder / "queue").write_text("SUSPENDED")
  done = cloud.launch("--steps=create", "--queued")
  assert done.returncode == 0, done.stderr
  assert cloud.verbs()[2:4] == [
    "queued-resources delete",
    "queued-resources create",
  ]


def test_no_quota_has_its_own_words_and_exit_code(cloud):
  text = "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepod' has been exceeded."
  cloud.plan({"words": "tpu-vm create", "times": 1, "stderr": text})
  done = cloud.launch()
  assert done.returncode == 69
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: ") and "TPUV5sLitepod" in last
  assert "--queued" in last and "Traceback" not in done.stderr
  assert cloud.verbs() == WHOLE[:2]


def test_a_failing_worker_is_named_with_its_log(cloud):
  cloud.plan(run={"0": SAVES, "1": "echo no room; exit 3"})
  done = cloud.launch("--steps=create,sync,install,start,stream,delete")
  assert done.returncode == 1
  assert "worker 1: 3" in done.stderr and "no room" in done.stderr
  assert "1 of 2 workers failed" in done.stderr
  # A failed run's machines are not deleted under its owner's hands.
  assert "tpu-vm delete" not in cloud.verbs()
  assert "costs money" in done.stderr


def test_workers_that_a_dead_one_took_along_are_not_blamed(cloud):
  cloud.plan(run={"0": "echo heartbeat; exit 134", "1": "echo real; exit 1"})
  done = cloud.launch()
  assert done.returncode == 1 and "end of worker 1's log" in done.stderr


def test_a_preempted_node_has_its_own_exit_code(cloud):
  gone = {"words": "follow", "times": 1, "stderr": "broken", "code": 255}
  cloud.plan(gone | {"state": "PREEMPTED"})
  done = cloud.launch()
  assert done.returncode == 75
  assert "taken away" in done.stderr and "PREEMPTED" in done.stderr
  # The same command makes it again.
  done = cloud.launch()
  assert done.returncode == 0, done.stderr
  assert cloud.verbs()[-10:] == [
    *("tpu-vm describe", "tpu-vm delete"),
    *WHOLE[1:],
  ]


def test_a_preempted_node_is_made_again_as_often_as_allowed(cloud):
  gone = {"words": "follow", "times": 1, "stderr": "broken", "code": 255}
  cloud.plan(gone | {"state": "PREEMPTED"})
  done = cloud.launch("--max_preemptions=1")
  assert done.returncode == 0, done.stderr
  assert cloud.verbs().count("tpu-vm create") == 2


def test_a_slice_on_its_way_out_is_waited_for(cloud):
  gone = {"words": "follow", "times": 1, "stderr": "broken", "code": 255}
  cloud.plan(gone | {"state": "DELETING DELETING PREEMPTED"})
  done = cloud.launch("--max_preemptions=1")
  assert done.returncode == 0, done.stderr
  assert "mine is DELETING: waiting" in done.stderr
  assert cloud.verbs().count("tpu-vm create") == 2


def test_a_slice_that_is_lost_under_a_copy_is_made_again(cloud):
  gone = {"words": "tpu-vm scp", "times": 1, "stderr": "no route to host"}
  cloud.plan(gone | {"state": "PREEMPTED"})
  done = cloud.launch("--max_preemptions=1")
  assert done.returncode == 0, done.stderr
  assert cloud.verbs().count("tpu-vm create") == 2


def test_a_broken_connection_is_made_again(cloud):
  cloud.plan({"words": "follow", "times": 2, "stderr": "broken", "code": 255})
  done = cloud.launch()
  assert done.returncode == 0, done.stderr
  assert cloud.verbs().count("ssh follow") == 3


def test_a_run_that_saved_and_stopped_may_go_on(cloud):
  cloud.plan(run=dict.fromkeys("01", "exit 143"))
  done = cloud.launch()
  assert done.returncode == 75 and "goes on" in done.stderr


def test_an_interrupt_reaches_the_run_and_no_code_is_put_under_it(cloud):
  patient = "trap 'echo saved; exit 143' TERM; sleep 60 & wait"
  cloud.plan(run=dict.fromkeys("01", patient))
  assert cloud.launch("--steps=create,sync,install,start").returncode == 0
  refused = cloud.launch("--steps=sync")
  assert refused.returncode == 1
  assert "a run is going on: --steps=stream,collect" in refused.stderr
  twice = cloud.launch("--steps=start")
  assert twice.returncode == 1
  done = cloud.launch("--steps=interrupt,stream")
  assert done.returncode == 75, done.stderr
  assert "saved" in done.stdout


def test_a_dry_run_prints_what_a_run_calls(cloud):
  dry = cloud.launch("--dry_run")
  assert dry.returncode == 0 and not cloud.calls()
  printed = [shlex.split(line) for line in dry.stdout.splitlines()]
  printed = [line[1:] for line in printed if line[0] == "gcloud"]
  assert cloud.launch().returncode == 0
  # Only the names of temporary files differ.
  changing = ("tsd_jax.tar.gz", "--output-directory=")
  assert [
    [a for a in call if not any(c in a for c in changing)] for call in printed
  ] == [
    [a for a in call if not any(c in a for c in changing)]
    for call in cloud.calls()
  ]


def test_a_home_folder_is_the_workers(cloud):
  done = cloud.launch("--workdir=~/run", "--steps=collect", "--dry_run")
  assert "mine:~/run" in done.stdout and "tsd_jax/src/~" not in done.stdout


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--config.iterations=many", "an integer"),
    ("--steps=create,fly", "'fly' is not one of create"),
    ("--accelerator_type=v9-8", "--runtime_version"),
    ("--commit=nowhere", "git"),
    ("--config=/tmp/elsewhere.py", "/tmp/elsewhere.py"),
    ("--workdir=gs://bucket/run", "is an address: mount it"),
  ],
)
def test_bad_input_is_one_line_and_makes_nothing(cloud, flag, words):
  steps = ["--steps=create,sync"] if "commit" in flag else []
  done = cloud.launch(flag, *steps)
  assert done.returncode == 2, done.stderr
  assert words in done.stderr.strip().splitlines()[-1]
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
  "flag",
  [
    "--commit=--output=/tmp/x",
    "--tpu=--flags-file=/tmp/x",
    "--zone=-z",
    "--project=--quiet",
    "--workdir=runs/$(reboot)",
    "--workdir=runs/a b",
    "--collect=-r",
    "--accelerator_type=--spot",
  ],
)
def test_no_value_becomes_an_option_or_a_command(cloud, flag):
  done = cloud.launch(flag)
  assert done.returncode == 2
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith(f"error: {flag.partition('=')[0]}=")
  assert "begin with no dash" in last and not cloud.calls()
