"""A source of numbered readings in a process of its own: plain QoS 1 by stock paho, with a note of every PUBACK."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections import deque
from multiprocessing.synchronize import Event
from pathlib import Path

import orjson
from paho.mqtt import client as paho

ASSETS = 5
T0 = 1_795_428_000_000_000
"""Time of reading 0 in microseconds; each further one is a millisecond later."""
_IN_FLIGHT = 400
_SENT_AGAIN_SECONDS = 1.0
"""What was confirmed so shortly before the connection was lost is sent again, beside all that was not confirmed."""

_CONTEXT = multiprocessing.get_context("forkserver")


class NumberedReadings:
    """Publishes reading 0, 1, 2 and so on at a steady rate, until it is told to finish."""

    def __init__(self, port: int, confirmed: Path, *, rate: float) -> None:
        """confirmed: file to which the number of each confirmed reading is added. rate: readings a second."""
        self._confirmed = confirmed
        self._finish = _CONTEXT.Event()
        self._process = _CONTEXT.Process(target=_run, args=(port, confirmed, rate, self._finish), daemon=True)
        self._process.start()

    def confirmed(self) -> set[int]:
        """The numbers that the broker has confirmed by now."""
        written = self._confirmed.read_text() if self._confirmed.exists() else ""
        return {int(line) for line in written[: written.rfind("\n") + 1].split()}

    def finish(self, seconds: float = 60.0) -> int:
        """Wait until all that was published is confirmed; how many readings that were."""
        self._finish.set()
        self._process.join(seconds)
        assert self._process.exitcode == 0, f"the source ended with {self._process.exitcode}"
        numbers = self.confirmed()
        assert numbers == set(range(len(numbers))), "the source itself left a number out"
        return len(numbers)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


class _Connection:
    """One connection and what is unconfirmed on it."""

    def __init__(self, port: int) -> None:
        self._numbers: dict[int, int] = {}  # packet id: number
        self._confirmed: deque[int] = deque()  # packet ids
        self._open = threading.Event()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        self._client.max_inflight_messages_set(_IN_FLIGHT)
        self._client.on_connect = lambda *_: self._open.set()
        self._client.on_disconnect = lambda *_: self._open.clear()
        self._client.on_publish = self._on_publish
        self._client.connect("127.0.0.1", port, keepalive=2)
        self._client.loop_start()
        self._open.wait(5.0)

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def publish(self, number: int) -> None:
        body = {"time": (T0 + 1000 * number) / 1e6, "values": {"n": number}}
        sent = self._client.publish(f"plant/asset-{number % ASSETS}/readings", orjson.dumps(body), qos=1)
        self._numbers[sent.mid] = number

    def confirmed(self) -> list[int]:
        """What was confirmed since this was last asked."""
        return [self._numbers.pop(self._confirmed.popleft()) for _ in range(len(self._confirmed))]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_publish(self, client: object, userdata: object, mid: int, *_: object) -> None:
        self._confirmed.append(mid)  # no more here: paho holds a lock now that publishing needs


def _run(port: int, path: Path, rate: float, finish: Event) -> None:
    began = time.monotonic()
    paused = 0.0
    owed: set[int] = set()
    lately: dict[int, float] = {}  # number: when it was confirmed
    following = 0
    with path.open("a", buffering=1) as file:
        while True:
            connection = None
            lost = time.monotonic()
            while connection is None or not connection.is_open:
                if connection is not None:
                    connection.close()
                with contextlib.suppress(OSError):
                    connection = _Connection(port)
                time.sleep(0.05)
            paused += time.monotonic() - lost
            owed |= {number for number, at in lately.items() if lost - at < _SENT_AGAIN_SECONDS}
            for number in sorted(owed):
                connection.publish(number)
            while connection.is_open:
                done = connection.confirmed()
                now = time.monotonic()
                file.write("".join(f"{number}\n" for number in done))
                owed -= set(done)
                lately = {n: at for n, at in lately.items() if now - at < _SENT_AGAIN_SECONDS} | dict.fromkeys(
                    done, now
                )
                if finish.is_set():
                    if not owed:
                        connection.close()
                        return
                else:
                    while following < rate * (now - began - paused) and len(owed) < _IN_FLIGHT:
                        owed.add(following)
                        connection.publish(following)
                        following += 1
                time.sleep(0.005)
            connection.close()
