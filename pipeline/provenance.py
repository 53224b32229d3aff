"""Where numbers come from: the commit, the machine."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def hardware(device: str = "cpu") -> str:
    """The device's name and the machine's cores.

    Args:
        device: As torch calls it.
    """
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} thread(s) of {processor()} ({os.cpu_count()} cores)"


def processor() -> str:
    """The name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def commit(root: Path = _ROOT) -> str:
    """The commit that the checkout is at, "" where it is none; read without git."""
    head = root / ".git" / "HEAD"
    if not head.is_file():
        return ""
    text = head.read_text().strip()
    if not text.startswith("ref: "):
        return text[:12]
    name = text.removeprefix("ref: ")
    loose, packed = root / ".git" / name, root / ".git" / "packed-refs"
    if loose.is_file():
        return loose.read_text().strip()[:12]
    lines: Sequence[str] = packed.read_text().splitlines() if packed.is_file() else ()
    return next((line[:12] for line in lines if line.endswith(f" {name}")), "")
