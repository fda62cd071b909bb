"""A `gcloud` for tests: records its calls, and fails where a plan says so.

Workers are folders under $FAKE_GCLOUD; a command for a worker runs here with
that folder as its home, so that launch/pod_worker.sh itself is tested. The plan
(plan.json) holds `workers`, `fail` ([words of the call, times, stderr]), and
`run`, what the stand-in for Python does on each worker.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(os.environ["FAKE_GCLOUD"])


def flag(arguments, name, default=None):
  """Value of --name=value."""
  found = [a for a in arguments if a.startswith(f"--{name}=")]
  return found[0].partition("=")[2] if found else default


def fail(text, code=1):
  """Ends as gcloud does."""
  print(f"ERROR: (gcloud) {text}", file=sys.stderr)
  sys.exit(code)


def copy(source, target):
  """Copies a file or a folder, as scp --recurse does."""
  if source.is_dir():
    shutil.copytree(source, target / source.name)
  else:
    shutil.copy(source, target)


def install(home, script):
  """A stand-in for the environment: its Python only says what it was given."""
  python = home / "tsd_jax" / "venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text(f'#!/bin/bash\necho "ran $*"\n{script}\n')
  python.chmod(0o755)


def main(arguments):
  """Does one call."""
  with open(ROOT / "calls.jsonl", "a") as file:
    file.write(json.dumps(arguments) + "\n")
  plan = json.loads((ROOT / "plan.json").read_text())
  for failure in plan.get("fail", []):
    if failure["words"] in " ".join(arguments) and failure["times"] > 0:
      failure["times"] -= 1
      (ROOT / "plan.json").write_text(json.dumps(plan))
      if "state" in failure:
        (ROOT / "state").write_text(failure["state"])
      fail(failure["stderr"], failure.get("code", 1))
  _, _, group, verb, *rest = arguments
  state, queue = ROOT / "state", ROOT / "queue"
  workers = [ROOT / f"worker-{i}" for i in range(plan["workers"])]
  if verb == "describe":
    file = state if group == "tpu-vm" else queue
    if not file.exists():
      fail("NOT_FOUND: Resource was not found")
    states = file.read_text().split()
    print(states[0])
    if states[1:]:
      file.write_text(" ".join(states[1:]))
  elif verb == "create":
    assert flag(rest, "accelerator-type")
    if group == "queued-resources":
      assert flag(rest, "node-id") and flag(rest, "runtime-version")
      queue.write_text("WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    else:
      assert flag(rest, "version")
    state.write_text("READY")
    for home in workers:
      home.mkdir(exist_ok=True)
  elif verb == "delete":
    for file in (state, queue):
      file.unlink(missing_ok=True)
    for home in workers:
      shutil.rmtree(home, ignore_errors=True)
  elif verb in ("start", "stop"):
    state.write_text("READY" if verb == "start" else "STOPPED")
  else:
    worker = flag(rest, "worker", "0")
    chosen = workers if worker == "all" else [workers[int(worker)]]
    if verb == "scp":
      source, target = [a for a in rest if not a.startswith("--")]
      for home in chosen:
        if ":" in source:
          copy(home / source.partition(":")[2], pathlib.Path(target))
        else:
          copy(pathlib.Path(source), home / target.partition(":")[2])
      return
    command, codes = flag(rest, "command"), []
    for number, home in enumerate(chosen):
      if command.endswith("pod_worker.sh install"):
        install(home, plan.get("run", {}).get(str(number), ""))
        continue
      logs = flag(rest, "output-directory")
      out = open(f"{logs}/{number}.log", "w") if logs else None
      done = subprocess.run(
        ["bash", "-c", command],
        cwd=home,
        env=os.environ | {"HOME": str(home), "TSD_JAX_PATIENCE": "10"},
        stdout=out,
      )
      codes.append(done.returncode)
    sys.exit(next((code for code in codes if code), 0))


main(sys.argv[1:])
