#!/usr/bin/env python3
"""How long a training stands still when a trainer is killed: kill -9 of one of two trainers again and again, and the time until a step
that is new is written to the metrics (the second line after the kill: the first may have been under way). No checkpoint is written
meanwhile, so that whatever goes on comes from memory.

    python3 tests/python/recovery_times.py [KILLS]          # after `make build`; 10 kills take a minute

Prints one JSON document. `steps_lost` counts steps that were computed twice or are missing but for the line that rank 0 had not
written when it was killed itself.
"""
import collections
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LLM2CLIP = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/llm2clip"


def main():
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "output"
        environment = dict(os.environ, OMP_WAIT_POLICY="passive", XDG_STATE_HOME=f"{folder}/state", LLM2CLIP_CACHE=f"{folder}/cache")
        changes = [f"output={output}", "stage.clip.checkpoint.every_steps=100000", "faults={ max_failures = 1000 }"]
        command = [LLM2CLIP, "run", ROOT / "configs/demo-quick.toml", "--workers", "2"]
        command += [word for change in changes for word in ("--set", change)]
        with open(f"{folder}/log", "w") as log:
            run = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            report(measure(output, environment, kills), output, kills)
        finally:
            run.send_signal(signal.SIGINT)
            run.wait(timeout=120)


def steps(output):
    """The steps in the metrics, in order; a line that is being written is left out."""
    try:
        lines = (output / "clip/metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line)["step"] for line in lines]


def wait_for(output, step, seconds=180):
    end = time.monotonic() + seconds
    while not (found := steps(output)) or found[-1] < step:
        if time.monotonic() > end:
            sys.exit(f"step {step} did not come within {seconds} s")
        time.sleep(0.005)
    return time.monotonic()


def measure(output, environment, kills):
    wait_for(output, 5)
    times = []
    for number in range(kills):
        asked = subprocess.run([LLM2CLIP, "status", output, "-o", "json"], capture_output=True, env=environment, check=True)
        pid = json.loads(asked.stdout)["ranks"][number % 2]["pid"]
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)  # a line that was on its way to the file
        reached = steps(output)[-1]
        times.append(wait_for(output, reached + 2) - killed)
        wait_for(output, reached + 8)
    return times


def report(times, output, kills):
    counted = collections.Counter(steps(output))
    twice = sum(count - 1 for count in counted.values())
    missing = max(counted) - len(counted)
    by_rank_0 = (kills + 1) // 2
    print(json.dumps({
        "schema": 1,
        "kills": kills,
        "kill_to_next_new_step_s": {"median": statistics.median(times), "worst": max(times), "all": times},
        "steps_lost": twice + max(0, missing - by_rank_0),
        "metrics_lines_missing": missing,
    }, indent=2))


main()
