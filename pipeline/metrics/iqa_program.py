"""Scores images with pyiqa, in an environment of its own: `python iqa_program.py NAME...`.

It imports nothing of this project, because pyiqa's licence and its pinned companions stay out of
it. What it is told and tells:

stdin   a line of JSON {"seed": 32 bits, "size": bytes of the image}, then the image's bytes; again
stdout  at the start one line {"library", "files": name -> sha256, "errors": metric -> why it cannot
        be made}; then a line per image {metric: {"value": float} or {"error": one line}}

It ends with its input, and when the process that started it is gone. It opens no connection: pyiqa
would download what it misses.
"""

import hashlib
import io
import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

WEIGHT_SUFFIXES = (".pth", ".pt", ".mat", ".npz", ".safetensors", ".bin")
_POLL_S = 1.0


def main(names: list[str]) -> None:
    """Make the metrics, tell which there are, then answer until the input ends."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    requests, answers = sys.stdin.buffer, _private_stdout()
    opened: set[str] = set()
    sys.addaudithook(lambda event, arguments: _audit(event, arguments, opened))
    import pyiqa  # type: ignore[import-not-found]  # lives in another environment

    # pyiqa's own files and those of other packages are no news.
    opened.clear()
    metrics: dict[str, Any] = {}
    errors = {}
    for name in names:
        try:
            metrics[name] = pyiqa.create_metric(name, device="cpu")
        except Exception as error:  # whatever a metric's parts raise
            errors[name] = _why_not(name, error)
    greeting = {
        "library": f"pyiqa {pyiqa.__version__}",
        "files": _digests(opened),
        "errors": errors,
    }
    _tell(answers, greeting)
    for line in requests:
        request = json.loads(line)
        data = requests.read(request["size"])
        _tell(answers, {name: _score(metrics[name], data, request["seed"]) for name in metrics})


def _private_stdout() -> BinaryIO:
    """The real stdout; what libraries print goes to stderr instead."""
    private = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return private


def _tell(answers: BinaryIO, told: dict[str, Any]) -> None:
    answers.write(json.dumps(told).encode() + b"\n")
    answers.flush()


def _end_with_parent(parent: int) -> None:
    """A long computation does not see that the input has ended."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(1)


def _audit(event: str, arguments: tuple[Any, ...], opened: set[str]) -> None:
    """Refuse connections; note which weight files are read."""
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise ConnectionRefusedError("nothing is downloaded")
    if event == "open" and str(arguments[0]).endswith(WEIGHT_SUFFIXES):
        opened.add(str(arguments[0]))


def _why_not(name: str, error: Exception) -> str:
    return (
        f"{name}: {_one_line(error)}; are its weights where pyiqa looks ($TORCH_HOME/hub/pyiqa, "
        "$HF_HOME)? nothing is downloaded"
    )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _digests(opened: set[str]) -> dict[str, str]:
    paths = sorted(Path(name) for name in opened)
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()
    }


def _score(metric: Any, data: bytes, seed: int) -> dict[str, Any]:
    """One metric of one image; seeded, because MANIQA looks at random crops."""
    import numpy as np
    import torch
    from PIL import Image

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32) / 255
        with torch.inference_mode():
            found = metric(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None])
            return {"value": float(found)}  # which may be NaN
    except Exception as error:  # a bad image is an answer, not an end
        return {"error": _one_line(error)}


if __name__ == "__main__":
    main(sys.argv[1:])
