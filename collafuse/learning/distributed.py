"""One training in several processes, which torchrun starts: each takes its share of every batch.

    torchrun --nproc-per-node 4 -m cli train-server CONFIG --releases DIR -o RUN

Rank 0 leads: it alone averages the weights, writes files, draws pictures and speaks. All draw the random numbers of the
whole batch and keep those of their own images, so that a training sees the same numbers on any number of ranks.

Nobody waits for ever. A rank that ends closes its connections, which the others notice at once over gloo; whatever the
connection, each rank leaves a sign of life every few seconds, and one that misses another's ends itself. A rank that
lives and does not come to a meeting is given up after MEETING_SECONDS.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ..core.errors import ConfigError, RankLostError, UsageError, first_line
from ..core.launched import processes_launched

PULSE_SECONDS = 2.0
SILENT_SECONDS = 20.0
"""A rank without a sign of life for so long is taken for dead. torchrun gives a process that does not react 30 seconds
more, so that the whole job ends within a minute."""
LAST_ANSWER_SECONDS = 5.0
"""How long a rank that ends waits for an answer of the store: at once from one that lives."""
MEETING_SECONDS = 1800.0
"""How long the others wait for a rank that lives, such as rank 0 while it draws a sample sheet."""
ADVICE = (
    "Run the same command with --resume to go on from the newest checkpoint; the number of processes may be another."
)


@dataclass(frozen=True)
class Ranks:
    """This process among those of one training: its number, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This rank's part of ``count`` images. Raises ConfigError when they cannot be dealt out evenly."""
        if count % self.size:
            raise ConfigError(
                f"batch_size={count} cannot be dealt evenly to {self.size} processes; "
                f"use {count // self.size * self.size or self.size} or another multiple of {self.size}."
            )
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def same(self, number: int, device: torch.device) -> int:
        """Rank 0's number, on every rank; also a place where all meet."""
        value = torch.tensor(number, device=device)
        self.copy_from_first([value])
        return int(value)

    def copy_from_first(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors with those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)


ALONE = Ranks()


@contextmanager
def meeting(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that torchrun started, for as long as the block runs; gives the ranks and this one's device.

    A process that was started alone is the one rank of one. Raises UsageError for a device that several processes
    cannot share, RankLostError when another rank ends or torchrun ends this one.
    """
    if processes_launched() == 1:
        yield ALONE, device
        return
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    device = _own(device)
    terminate = signal.signal(signal.SIGTERM, lambda number, frame: _ended_by_the_launcher(ranks))
    pulse = None
    try:
        timeout = timedelta(seconds=MEETING_SECONDS)
        store, _, _ = next(rendezvous("env://", ranks.rank, ranks.size, timeout=timeout))
        pulse = _Pulse(store.clone(), ranks)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store, rank=ranks.rank, world_size=ranks.size, timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )  # fmt: skip
        pulse.start()
        yield ranks, device
        ranks.same(0, device)  # so that none leaves while another still works, and is missed
        pulse.stop()
        dist.destroy_process_group()
    except (RuntimeError, ConnectionError) as error:
        # Of the failures of torch, those that say that another process has gone.
        if not isinstance(error, dist.DistError | ConnectionError) and "gloo" not in str(error):
            raise
        raise RankLostError(
            f"rank {ranks.rank}: another process of this training ended ({first_line(error)}). {ADVICE}"
        ) from error
    finally:
        if pulse is not None:
            pulse.stop()
        signal.signal(signal.SIGTERM, terminate)


def _own(device: torch.device) -> torch.device:
    """This process's own device. Raises UsageError."""
    if device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise UsageError(f"several processes train on --device cuda, one GPU each, or on cpu; not on {device}.")
    local = int(os.environ["LOCAL_RANK"])  # type: ignore[unreachable]  # for torch's annotations an index is never None
    if local >= torch.cuda.device_count():
        raise UsageError(
            f"process {local} of this machine finds {torch.cuda.device_count()} GPUs; start as many processes as there "
            "are GPUs (--nproc-per-node)."
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _ended_by_the_launcher(ranks: Ranks) -> None:
    raise RankLostError(
        f"rank {ranks.rank}: ended by the launcher, as another process failed or the job's time is over. {ADVICE}"
    )


class _Pulse(threading.Thread):
    """Leaves this rank's sign of life, and ends the process when another's does not come."""

    def __init__(self, store: Any, ranks: Ranks) -> None:
        super().__init__(name="pulse", daemon=True)
        self._store, self._ranks = store, ranks
        self._stopped = threading.Event()
        others = set(range(ranks.size)) - {ranks.rank}
        self._seen = dict.fromkeys(others, (-1, time.monotonic()))

    def stop(self) -> None:
        """Miss nobody from now on. Waits for what the store is being asked: an interpreter that ends while a thread is
        inside torch aborts the process, which looks like a failed training."""
        self._stopped.set()
        if self.is_alive():
            self.join(LAST_ANSWER_SECONDS)

    def run(self) -> None:
        while not self._stopped.wait(PULSE_SECONDS):
            try:
                self._store.add(f"collafuse/pulse/{self._ranks.rank}", 1)
                lost = [rank for rank in self._seen if self._silent(rank)]
            except (RuntimeError, ConnectionError) as error:
                self._end(f"the launcher does not answer ({first_line(error)})")
                return
            if lost:
                self._end(f"no sign of life of rank {', '.join(map(str, lost))} for {SILENT_SECONDS:.0f} seconds")
                return

    def _silent(self, rank: int) -> bool:
        count, now = self._store.add(f"collafuse/pulse/{rank}", 0), time.monotonic()
        before, since = self._seen[rank]
        if count != before:
            self._seen[rank] = (count, now)
            return False
        return now - since > SILENT_SECONDS

    def _end(self, reason: str) -> None:
        """End the process from here: its main thread waits inside torch for the one that is gone."""
        if self._stopped.is_set():
            return
        sys.stderr.write(f"error: rank {self._ranks.rank}: {reason}. {ADVICE}\n")
        sys.stderr.flush()
        os._exit(RankLostError.exit_code)
