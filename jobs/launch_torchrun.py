"""A worker that `torchrun` started: it joins the others and does its share."""

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from jobs.training_display import Attendant, Display, heeding_signals
from jobs.training_run import locked, work
from vsp_model.train.distributed import ProcessGroup

if TYPE_CHECKING:
    from jobs.training import TrainingJob
    from vsp_model.train.loop import Outcome


def run_as_member(job: "TrainingJob", *, restart: bool) -> "Outcome":
    """Train as one of the processes that `torchrun` started.

    Raises:
        UserError: If the settings do not fit what is there.
        RunError: If training can't go on.
    """
    from dataclasses import replace

    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if job.device.startswith("cuda"):
        torch.cuda.set_device(local)
        job = replace(job, device=f"cuda:{local}")
    dist.init_process_group("nccl" if job.device.startswith("cuda") else "gloo")
    try:
        comm = ProcessGroup(job.device)
        folder = locked(job, restart=restart) if rank == 0 else nullcontext()
        with Display(quiet=rank > 0) as display, folder:
            comm.barrier()  # the folder is ready
            attendant = Attendant(display)
            with heeding_signals(attendant):
                count = int(os.environ.get("LOCAL_WORLD_SIZE", comm.world))
                return work(job, comm, attendant, display.say, count)
    finally:
        dist.destroy_process_group()
