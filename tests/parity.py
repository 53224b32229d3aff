"""Do the networks compute what the published ones do? Compares them with recorded vectors.

    python tests/parity.py DIR [--keys FILE] [--only PART ...]

DIR holds one .npz a part (tests/parity_data/README.md). Weights are rebuilt from the seed in each
file and go in under their published names. One line a vector: part and name, largest error,
tolerance, verdict. The exit status is 1 if any vector exceeds its tolerance, if a part could not be
run or if an entry was left unchecked, 2 if there is nothing to run. fp32 on the CPU, one part in
memory at a time; the whole set takes a few minutes and up to 4 GB.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from parity_vectors import chain, degradation, layers, training
from parity_vectors.vectors import Result, Specs, Vectors

KEYS = Path(__file__).resolve().parent / "parity_data" / "state_dict_keys.json"

PARTS: dict[str, Callable[[Vectors], None]] = {
    "ada": training.ada,
    "arcface": training.arcface,
    "code_diffuser": chain.code_diffuser,
    "ddpm_schedule": layers.ddpm_schedule,
    "degradation": degradation.degradation,
    "discriminator": training.discriminator,
    "encoder": chain.encoder,
    "losses": training.losses,
    "lpips": training.lpips,
    "pipeline": chain.pipeline,
    "primitives": layers.primitives,
    "restorer512": chain.restorer512,
    "restorer_small": chain.restorer_small,
    "smart": layers.smart,
    "stylegan": chain.stylegan,
    "stylegan_small": chain.stylegan,
}


def read_keys(path: Path) -> Specs:
    """Namespace -> its tensors, from the list of keys of the published files."""
    checkpoints = json.loads(path.read_text(encoding="utf-8"))["checkpoints"]
    sections = (section for entry in checkpoints.values() for section in entry["sections"])
    return {section["namespace"]: section["tensors"] for section in sections}


def run_part(path: Path, keys: Specs) -> list[Result]:
    """Run one file and print its lines; an exception is a failed line, not the end."""
    results: list[Result] = []
    start = time.monotonic()

    def report(result: Result) -> None:
        results.append(result)
        print(result.line(), flush=True)

    vectors = Vectors(path, keys, report)
    try:
        with torch.no_grad():
            PARTS[vectors.part](vectors)
            vectors.check_unread_sources()
    except KeyError as error:
        vectors.fail("*", f"KeyError: {error}" if vectors.part in PARTS else "unknown part")
    except Exception as error:
        traceback.print_exc()
        vectors.fail("*", f"{type(error).__name__}: {error}".splitlines()[0])
    vectors.fail_unchecked()
    print(f"{vectors.part}: {len(results)} lines, {time.monotonic() - start:.1f} s", flush=True)
    return results


def run(folder: Path, keys: Path, only: list[str] | None = None) -> int:
    """Run a set and return the exit status."""
    paths = [p for p in sorted(folder.glob("*.npz")) if only is None or p.stem in only]
    missing = sorted(set(only or ()) - {path.stem for path in paths})
    if missing or not paths:
        print(f"{folder}: no {', '.join(missing) or '*'}.npz here", file=sys.stderr)
        return 2
    specs, results, start = read_keys(keys), [], time.monotonic()
    for path in paths:
        results += run_part(path, specs)
        gc.collect()  # hooks and modules refer to each other; the next part needs the memory
    failed = [result for result in results if not result.passed]
    for result in failed:
        print(f"failed: {result.line()}")
    seconds = time.monotonic() - start
    passed = len(results) - len(failed)
    print(f"{len(paths)} parts, {passed} passed, {len(failed)} failed, {seconds:.0f} s")
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description="Compare the networks with recorded vectors of the published ones.",
        epilog="example: python tests/parity.py tests/parity_data/public --only smart primitives",
    )
    parser.add_argument("folder", type=Path, help="folder with one .npz a part")
    parser.add_argument(
        "--keys",
        type=Path,
        default=KEYS,
        help="tensors of the published files (default: %(default)s)",
    )
    parser.add_argument("--only", nargs="+", metavar="PART", help="run these parts")
    options = parser.parse_args(arguments)
    return run(options.folder, options.keys, options.only)


if __name__ == "__main__":
    sys.exit(main())
