"""A watchdog: where a rank hangs, the run ends and names it, instead of waiting for the time-outs of collectives.

A rank that hangs makes all others wait in a collective, and the one that complains first is not the one to blame. So
a thread of each rank publishes what its rank is doing and reads what the others do. Where no rank has gone on for
`timeout_sec`, every rank knows which one is behind: it is named, and all end.
"""

import contextlib
import json
import multiprocessing
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch.distributed as dist

from engine.base.console import print_rank0
from preprocess.common.errors import InputError, join_some
from preprocess.common.say import say, say_lines

_LARGEST_DATAGRAM = 65_507
_MOST_WORK = 2_000  # characters
_TRY_SEC = 5.0  # for the first datagrams of all ranks
_REPORT_FIRST_SEC = 3.0  # a rank that does not report ends this much later
_SLOWER, _LEAST_SLOW_SEC, _WARN_EVERY_SEC = 10.0, 0.5, 60.0
_BUSY_CPU_SHARE, _BUSY_BYTES_PER_SEC = 0.05, 1 << 14  # from which a rank that works alone is going on


@dataclass
class _State:
    """What a rank publishes. Each change of `signs` shows that it goes on; `place` is equal on ranks at one place."""

    work: str = "starting"
    place: int = 0
    signs: int = 0
    own_sec: float = 0.0


class _Radio:
    """Sends this rank's state to all ranks and hears theirs, in datagrams: they block nothing and need no rank.

    unheard: {rank: the ranks that it can't hear}, the same on every rank.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # which of our addresses the others reach
            probe.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
            self._socket.bind((probe.getsockname()[0], 0))
        self._socket.setblocking(False)
        self._rank, world_size = dist.get_rank(), dist.get_world_size()
        of_all: list[tuple[tuple[str, int], str]] = [(("", 0), "")] * world_size
        group = dist.new_group(backend="gloo")
        dist.all_gather_object(of_all, (self._socket.getsockname(), secrets.token_hex()), group=group)
        self._addresses = [address for address, _ in of_all]
        self._token = of_all[0][1]  # what others send to this port is not of this run
        of_ranks: list[list[int]] = [[]] * world_size
        dist.all_gather_object(of_ranks, self._try_all(), group=group)
        dist.destroy_process_group(group)
        self.unheard = {rank: missing for rank, missing in enumerate(of_ranks) if missing}

    def _try_all(self) -> list[int]:
        """The ranks of which nothing comes, though all send."""
        missing, until = set(range(len(self._addresses))), time.monotonic() + _TRY_SEC
        while missing and time.monotonic() < until:
            self.send(_State())
            time.sleep(_TRY_SEC / 100)
            missing -= {rank for rank, _ in self.hear()}
        self.send(_State())  # for those that began later
        return sorted(missing)

    def send(self, state: _State) -> None:
        """Tell all ranks. A datagram that is lost is followed by others."""
        data = json.dumps([self._token, self._rank, asdict(state)]).encode()
        for address in self._addresses:
            with contextlib.suppress(OSError):
                self._socket.sendto(data, address)

    def hear(self) -> Iterator[tuple[int, _State]]:
        """(rank, state) of each datagram that has come."""
        while True:
            try:
                data = self._socket.recv(_LARGEST_DATAGRAM)
            except BlockingIOError:
                return
            if data.startswith(json.dumps([self._token]).encode()[:-1]):
                _, rank, state = json.loads(data)
                yield rank, _State(**state)


class Watchdog:
    """Watches all ranks inside a `with`, whose begin is a collective. timeout_sec: 0 watches nothing.

    All ranks call `at` and `alone` equally often, in the same order.
    """

    def __init__(self, timeout_sec: float) -> None:
        self._rank, self._timeout_sec, self._every_sec = dist.get_rank(), timeout_sec, min(1.0, timeout_sec / 10)
        self._state, self._works_alone = _State(), False
        self._moved, self._closed = threading.Event(), threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._timeout_sec:
            self._radio = _Radio()
            if self._radio.unheard:
                print_rank0(f"warning: {describe_unheard(self._radio.unheard)}")
                self._timeout_sec = 0.0
        if self._timeout_sec:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._closed.set()
        self._moved.set()
        if self._timeout_sec:
            self._thread.join()

    def at(self, work: str, own_sec: float = 0.0) -> None:
        """This rank has gone on, and now does `work`.

        own_sec: seconds that the last step took it without waiting for another rank: for its data and its forwards.
        """
        self._state.work, self._state.own_sec = work[:_MOST_WORK], own_sec or self._state.own_sec
        self._state.place += 1
        self._state.signs += 1
        self._moved.set()

    @contextlib.contextmanager
    def alone(self, work: str, works: bool = True) -> Iterator[None]:
        """Inside, this rank may take long, and goes on as long as it or a loader worker computes, reads or writes.

        works: False on a rank that waits for another one's work meanwhile.
        """
        self.at(work)
        self._works_alone = works
        try:
            yield
        finally:
            self._works_alone = False
        self.at(f"after {work}")

    def _watch(self) -> None:
        """Tell of each move at once, and look at all ranks in intervals."""
        states = [_State()] * dist.get_world_size()
        looked = time.monotonic()
        heard, went_on = [looked] * len(states), [looked] * len(states)  # when a rank was heard, and had new signs
        used, warned = _used(), looked
        while not self._closed.is_set():
            self._moved.wait(self._every_sec)
            self._moved.clear()
            self._radio.send(self._state)
            now = time.monotonic()
            for rank, state in self._radio.hear():
                heard[rank] = now
                went_on[rank] = now if state.signs != states[rank].signs else went_on[rank]
                states[rank] = state
            if now - looked < self._every_sec:
                continue
            if self._works_alone:
                before, used = used, _used()
                self._state.signs += _is_busy(before, used, now - looked)
            looked = now
            if self._rank == 0 and now - warned > _WARN_EVERY_SEC and (slow := describe_slow(states)):
                say(slow)
                warned = now
            if now - max(went_on) > self._timeout_sec:
                silent = {rank for rank, last in enumerate(heard) if now - last > self._timeout_sec / 2}
                self._end(states, sorted(silent - {self._rank}))

    def _end(self, states: list[_State], silent: list[int]) -> None:
        """End this process; the first rank that runs reports. silent: ranks whose threads are not heard of."""
        places = [state.place for state in states]
        blamed = silent or [rank for rank, place in enumerate(places) if place == min(places)]
        if self._rank != min(set(range(len(states))) - set(silent)):
            time.sleep(_REPORT_FIRST_SEC)
            os._exit(1)
        others = next((f" (others: {s.work})" for rank, s in enumerate(states) if rank not in blamed), "")
        how = "not running" if silent else "not going on"
        error = InputError(
            join_some([f"rank {rank}" for rank in blamed], 8),
            f"{how} for {self._timeout_sec:.0f} s, at {states[blamed[0]].work}",
            f"every rank to go on{others}",
            "Look at its machine: its processes, GPU (dmesg) and disks. The same command resumes from the newest "
            "checkpoint; run.hang_timeout_sec=N waits longer.",
        )
        say_lines(f"error: {error}", error=True)
        os._exit(1)


def describe_unheard(unheard: dict[int, list[int]]) -> str:
    """A warning that there is no watchdog, where datagrams between ranks are lost."""
    rank, missing = next(iter(unheard.items()))
    return (
        f"rank {rank} hears nothing of rank {missing[0]}: UDP between their machines is blocked. A rank that hangs "
        "will not be named, and ends the run only by the time-outs of torch.distributed"
    )


def describe_slow(states: list[_State]) -> str:
    """A warning where a rank takes ten times as long for its own part of a step as the others; "" where none does."""
    times = [state.own_sec for state in states]
    slowest = max(range(len(times)), key=times.__getitem__)
    usual = median(times[:slowest] + times[slowest + 1 :] or [times[slowest]])
    if times[slowest] < max(_LEAST_SLOW_SEC, _SLOWER * usual):
        return ""
    return (
        f"warning: rank {slowest} took {times[slowest]:.1f} s for its data and forwards of a step, the others "
        f"{usual:.1f} s: all wait for it"
    )


def _used() -> tuple[float, int]:
    """(CPU seconds, bytes read and written) so far of this process and its loader workers."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    cpu_sec, num_bytes = 0.0, 0
    for pid in pids:
        with contextlib.suppress(OSError):  # a worker has ended; some containers hide `io`
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            cpu_sec += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime
            lines = Path(f"/proc/{pid}/io").read_text().splitlines()
            num_bytes += sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar")))
    return cpu_sec, num_bytes


def _is_busy(before: tuple[float, int], now: tuple[float, int], seconds: float) -> bool:
    cpu_sec, num_bytes = now[0] - before[0], now[1] - before[1]
    return cpu_sec > _BUSY_CPU_SHARE * seconds or num_bytes > _BUSY_BYTES_PER_SEC * seconds
