"""Dead letters as a feed: read again by today's rules, and forgotten only when what they hold is stored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from connectors.decode import Decoder, routes_of
from connectors.sparkplug_topics import NAMESPACE
from pm.config import BrokerSection
from pm.ports import Delivery, LinkState, Reject

_SPARKPLUG: Final = "a Sparkplug message needs the birth that came before it; only its edge node can send it again"
_UNCLAIMED: Final = "no topic template matches its topic; add one to mqtt.readings, mqtt.events or [[mqtt.mapping]]"


class LetterFeed:
    """A `pm.ports.Feed` of messages that could not be read before, oldest first.

    What still cannot be read comes as a Reject with its new reason: ingest keeps it before the old one is forgotten.
    """

    def __init__(
        self,
        letters: Iterable[tuple[int, Reject]],
        brokers: Sequence[BrokerSection],
        *,
        forget: Callable[[Sequence[int]], object],
        max_future: timedelta | None = None,
    ) -> None:
        """letters: number and message of each. brokers: whose templates and mappings read them, the first that matches.

        forget: told the numbers of those that are stored, or kept again. Raises FeedError for a bad template.
        """
        self._waiting = deque(letters)
        self._readers = [(routes, Decoder(routes, max_future=max_future)) for routes in map(routes_of, brokers)]
        self._forget = forget

    @property
    def name(self) -> str:
        return "dead letters"

    @property
    def connected(self) -> bool:
        return True

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def dropped(self) -> int:
        return 0

    @property
    def link(self) -> LinkState:
        return LinkState(self.name, True, "", self.waiting, 0, 1, 0, False, 0)

    def open(self) -> None:
        """Nothing to connect to."""

    def take(self, limit: int, timeout: float) -> list[Delivery]:
        return [self._read(*self._waiting.popleft()) for _ in range(min(limit, len(self._waiting)))]

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self._forget([delivery.receipt for delivery in deliveries if isinstance(delivery.receipt, int)])

    def close(self) -> None:
        """Nothing to disconnect from."""

    def _read(self, number: int, letter: Reject) -> Delivery:
        for routes, decoder in self._readers:
            if routes.resolve(letter.topic) is not None:
                read = decoder.decode(letter.topic, letter.payload, received_us=letter.received_us, receipt=number)
                return read._replace(rejects=tuple(replace(reject, feed=letter.feed) for reject in read.rejects))
        why = _SPARKPLUG if letter.topic.startswith(f"{NAMESPACE}/") else _UNCLAIMED
        return Delivery(number, rejects=(replace(letter, reason=why),))
