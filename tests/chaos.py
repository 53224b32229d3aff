"""Kill whatever works on one output folder, again and again, and look for any trace of it.

    python tests/chaos.py --kills 20 --seed 0

Shards are restored twice by a tiny untrained model and two actors of an embedded Ray: once in
peace, once under `kill -9`, spread by chance over actors, the driver (which is then started again)
and "a node" (the raylet with all its workers at once). After the last run the folder must verify,
hold every key once, have condemned nobody, and equal the peaceful one byte for byte.

Which process dies, and how long after it has work in hand, follows from --seed; where that finds
the work depends on the machine. Linux only: processes are found in /proc.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from pipeline.tar import TarWriter
from pipeline.tracker import read_traces

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "configs" / "models" / "vspbfr-64.yaml"
SIZE = 64
PAUSE_S = (0.2, 5.0)  # between a worker having work in hand and the next kill
BUSY_S = 120.0  # a driver that lives must have work in hand after so long
END_S = 900.0
POLL_S = 0.05


def main() -> int:
    """Run it; the exit code is 1 where anything was lost, doubled, changed or condemned."""
    args = parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="vsp-chaos-"))
    began_s = time.monotonic()
    keys = make_shards(folder / "in", args.shards or 12 * args.kills + 8, args.records)
    reference = Run(folder, "reference")
    reference.finish()
    tell(f"reference: {len(keys)} shards of {args.records}, {time.monotonic() - began_s:.0f} s")
    chaos = Run(folder, "chaos")
    kills = cause_chaos(chaos, random.Random(args.seed), args.kills)
    chaos.finish()
    problems = [*chaos.problems, *check(chaos, reference, keys)]
    for problem in problems:
        tell(f"WRONG: {problem}")
    counts = ", ".join(f"{count} {target}" for target, count in sorted(kills.items()))
    tell(
        f"{kills.total()} kills ({counts}), {chaos.num_starts} runs, {len(keys)} shards, "
        f"{sum(map(len, keys.values()))} records, {time.monotonic() - began_s:.0f} s: "
        + (f"{len(problems)} problems, see {folder}" if problems else "nothing lost, bytes equal")
    )
    if not problems and not args.folder:
        shutil.rmtree(folder)
    return 1 if problems else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=0, help="by default as the kills need")
    parser.add_argument("--records", type=int, default=24, help="of a shard")
    parser.add_argument("--folder", type=Path, help="work here and keep everything")
    return parser.parse_args()


def tell(line: str) -> None:
    """Print now: whoever watches wants to see the kills as they come."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def make_shards(folder: Path, num_shards: int, num_records: int) -> dict[str, list[str]]:
    """Write shards of small JPEG faces-to-be; returns the member names of each."""
    folder.mkdir(parents=True)
    keys = {}
    for number in range(num_shards):
        shard = f"{number:06d}"
        keys[shard] = [f"{shard}-{index:05d}.jpg" for index in range(num_records)]
        with (folder / f"{shard}.tar").open("wb") as file:
            writer = TarWriter(file)
            for index, name in enumerate(keys[shard]):
                writer.add(name, jpeg([number, index]))
            writer.finish()
    return keys


def jpeg(seed: list[int]) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    picture = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return simplejpeg.encode_jpeg(picture, quality=95, colorsubsampling="444")


@dataclass
class Run:
    """One output folder and the driver that works on it, if one does."""

    folder: Path
    name: str
    num_starts: int = 0
    num_kills: int = 0
    problems: list[str] = field(default_factory=list)
    driver: subprocess.Popen[bytes] | None = None

    @property
    def out(self) -> Path:
        return self.folder / self.name

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self) -> subprocess.Popen[bytes]:
        """Start a driver; what it says is kept."""
        self.num_starts += 1
        options = f"--model {MODEL} --pool ray --workers 2 --threads 1 --batch-size 4 --device cpu"
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(
                [*vsp("restore"), str(self.folder / "in"), str(self.out), *options.split()],
                cwd=ROOT, stdout=log, stderr=log,
            )  # fmt: skip
        return self.driver

    def finish(self) -> None:
        """Let the work come to its end undisturbed."""
        code = self._wait(self.driver or self.start())
        if code and self.num_kills:  # the last kill took the driver, or its Ray
            code = self._wait(self.start())
        if code != 0:
            self.problems.append(f"exit code {code} of the last run; see {self.log}")

    def _wait(self, driver: "subprocess.Popen[bytes]") -> int:
        try:
            return driver.wait(END_S)
        except subprocess.TimeoutExpired:
            self.problems.append(f"no end after {END_S:.0f} s; see {self.log}")
            end_tree(driver.pid)
            return driver.wait()

    def is_busy(self) -> bool:
        """Whether a living actor has records in hand."""
        notes = (self.out / "_vsp" / "workers").glob("actor-*")
        return bool(targets(self.driver.pid)["actor"]) and any(
            read_traces(note).num_in_hand for note in notes
        )


def vsp(command: str) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", command]


def cause_chaos(run: Run, rng: random.Random, num_kills: int) -> Counter[str]:
    """Kill one thing after the other; returns how many of each kind."""
    num_drivers, num_nodes = max(1, num_kills // 6), max(1, num_kills // 8)
    kinds = ["driver"] * num_drivers + ["node"] * num_nodes
    kinds += ["actor"] * (num_kills - len(kinds))
    rng.shuffle(kinds)
    done, previous = Counter[str](), "driver"
    for number, kind in enumerate(kinds[:num_kills], 1):
        pause_s, choice = rng.uniform(*PAUSE_S), rng.random()
        if not wait_busy(run, may_exit=previous != "actor"):
            break
        time.sleep(pause_s)
        pid = kill(run, kind, choice)
        if not pid:
            run.problems.append(f"kill {number}: no {kind} to be found; see {run.log}")
            break
        done[kind] += 1
        run.num_kills += 1
        num_done = len(list((run.out / "_vsp" / "commits").glob("*/*.json")))
        tell(f"kill {number}: {kind} {pid} after {pause_s:.1f} s; {num_done} shards done")
        previous = kind
    return done


def wait_busy(run: Run, may_exit: bool) -> bool:
    """Wait until the next kill would hurt; a driver that is gone is started again.

    Args:
        run: The victim.
        may_exit: The kill before took the driver, or its Ray, with it.

    Returns:
        False if there is nothing left to do, or the driver does not do it.
    """
    deadline = time.monotonic() + BUSY_S
    while time.monotonic() < deadline:
        code = run.driver.poll() if run.driver else None
        if code is not None and (code == 0 or not may_exit):
            run.problems.append(f"the driver ended with {code} before the next kill; see {run.log}")
            return False
        if run.driver is None or code is not None:
            run.start()
            may_exit, deadline = False, time.monotonic() + BUSY_S
        if run.is_busy():
            return True
        time.sleep(POLL_S)
    run.problems.append(f"nothing in hand after {BUSY_S:.0f} s; see {run.log}")
    end_tree(run.driver.pid)
    return False


def kill(run: Run, kind: str, choice: float) -> int:
    """Kill one process, or all of a node; returns the pid, 0 if there was none."""
    if kind == "driver":
        os.kill(run.driver.pid, signal.SIGKILL)
        run.driver.wait()
        return run.driver.pid
    there = targets(run.driver.pid)[kind]
    if not there:
        return 0
    pid = there[int(choice * len(there))]
    if kind == "node":
        end_tree(pid)
    else:
        end(pid)
    return pid


def targets(driver: int) -> dict[str, list[int]]:
    """The pids of a driver's actors and of its Ray's node."""
    found: dict[str, list[int]] = {"actor": [], "node": []}
    for pid in sorted(descendants(driver)):
        command = read(f"/proc/{pid}/cmdline")
        if command.startswith("ray::Actor"):
            found["actor"].append(pid)
        elif command.partition("\0")[0].endswith("/raylet"):
            found["node"].append(pid)
    return found


def descendants(pid: int) -> list[int]:
    children = " ".join(read(str(path)) for path in Path(f"/proc/{pid}/task").glob("*/children"))
    found = [int(child) for child in children.split()]
    return found + [below for child in found for below in descendants(child)]


def read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # the process has just ended
        return ""


def end_tree(pid: int) -> None:
    """Kill a process and all below it, from the top, so that nobody is replaced."""
    for victim in (pid, *descendants(pid)):
        end(victim)


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it was faster
        return


def check(run: Run, reference: Run, keys: dict[str, list[str]]) -> list[str]:
    """What is wrong with a finished output folder, one line each."""
    problems = []
    for each in (reference, run):
        found = subprocess.run(
            [*vsp("verify"), str(each.out), "--json"], cwd=ROOT, capture_output=True, check=False
        )
        counts = json.loads(found.stdout)["counts"] if found.stdout else found.stderr
        if found.returncode or counts != {"restored": sum(map(len, keys.values()))}:
            problems.append(f"vsp verify {each.name}: exit code {found.returncode}, {counts}")
    problems += [
        f"{shard}: not every key exactly once"
        for shard, names in keys.items()
        if members(run.out / f"{shard}.tar") != names
    ]
    events = map(json.loads, read(str(run.out / "_vsp" / "journal.jsonl")).splitlines())
    problems += [f"an innocent: {e}" for e in events if e["event"] == "condemned"]
    return problems + differences(run.out, reference.out)


def members(tar: Path) -> list[str]:
    if not tar.is_file():
        return []
    with tarfile.open(tar) as file:
        return file.getnames()


def differences(left: Path, right: Path) -> list[str]:
    names = {path.name for out in (left, right) for path in out.iterdir() if path.is_file()}
    return [
        f"{name}: not the bytes of the undisturbed run"
        for name in sorted(names)
        if not (left / name).is_file()
        or not (right / name).is_file()
        or (left / name).read_bytes() != (right / name).read_bytes()
    ]


if __name__ == "__main__":
    sys.exit(main())
