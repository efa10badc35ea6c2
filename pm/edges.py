"""Which edges the configuration asks for, opened; and plant time from the machine's clock or the feed's."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pm.config import Config, MqttSection
from pm.domain import to_us
from pm.errors import FeedError, ModelError, StoreUnavailable
from pm.ports import Clock, Feed, ReadingStore, SourceRegister

if TYPE_CHECKING:
    from connectors.spool import Spool
    from forecasting.predict import TransformerForecaster
    from pm.ingest import IngestCounts
    from pm.reassess import LateWatch
    from pm.records import Records

log = logging.getLogger(__name__)

Runtime = Literal["auto", "onnx", "torch"]
"""What `assess.runtime` may be."""

LOOPBACK = "127.0.0.1"
CLOCK_TICK = "clock"
"""Under this name the feed's watermark is kept in the records, so that every part of the service knows plant time."""
BACKUP_TICK = "backup"
"""Under this name the records remember when the last backup was made."""


def open_store(config: Config) -> ReadingStore:
    """The configured store. Raises StoreError or StoreUnavailable."""
    section = config.store
    if section.kind == "influxdb":
        from connectors.influx import InfluxStore

        return InfluxStore(
            url=section.url,
            bucket=section.bucket,
            org=section.org,
            token=section.token.get_secret_value(),
            verify_tls=section.verify_tls,
            ca_file=section.ca_file,
            timeout=section.timeout,
            retention=section.retention,
            only_writer=not any(broker.share for broker in (config.mqtt, *config.mqtt.more)),
        )
    from connectors.embedded import EmbeddedStore

    return EmbeddedStore(section.path)


def feeds(
    config: Config, mqtt: MqttSection, *, one_subscription: bool, register: SourceRegister | None = None
) -> list[Feed]:
    """The configured feeds, not opened yet; a feed of another kind joins the list here. Raises FeedError.

    mqtt: where the first broker is by now. one_subscription: it keeps order within a subscription only.
    register: learns what Sparkplug B edge nodes say of assets and points beside their readings.
    """
    from connectors.mqtt_group import feed_of

    follows_feed = config.clock.source == "feed"
    if follows_feed and mqtt.more:
        raise FeedError(
            'clock.source = "feed" follows one broker, since messages of several come in no order; '
            'remove [[mqtt.more]], or set clock.source = "wall"'
        )
    opened: list[Feed] = [
        feed_of(
            broker,
            queue=config.ingest.queue,
            clock_topic=config.clock.topic if follows_feed else None,
            max_future=None if follows_feed else config.ingest.max_future,
            one_subscription=one_subscription and broker is mqtt,
            memory=config.models.dir.parent / "subscriptions",
        )
        for broker in (mqtt, *mqtt.more)
    ]
    if config.sparkplug.enabled:
        from connectors.sparkplug_feed import SparkplugFeed

        opened.append(
            SparkplugFeed(
                mqtt,
                config.sparkplug,
                queue=config.ingest.queue,
                max_future=None if follows_feed else config.ingest.max_future,
                register=register,
            )
        )
    return opened


def open_spool(config: Config, feed: str) -> Spool:
    """The spool of the feed of this name and of this process's client id. Raises a PmError where another has it."""
    from connectors.spool import Spool

    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{config.mqtt.client_id} {feed}").strip("-")
    folder = config.models.dir.parent / "spool" / name
    try:
        return Spool(folder, limit=config.ingest.spool_limit * 2**20)
    except OSError as error:
        raise FeedError(f"spool {folder} cannot be opened ({error.strerror}); mend the folder's rights") from None


def retry_dead_letters(
    config: Config, records: Records, store: ReadingStore, numbers: Sequence[int] = ()
) -> IngestCounts:
    """Read dead letters again as the configuration says by now, all or those of these numbers; what became of them.

    Raises StoreUnavailable where the store is away; nothing is forgotten then.
    """
    from connectors.letters import LetterFeed
    from pm.ingest import Ingest

    some = records.dead_letters_of(numbers) if numbers else None
    found = some if some is not None else records.dead_letters(max(records.dead_letter_count(), 1))
    feed = LetterFeed(
        [(letter.number, letter.reject) for letter in reversed(found)],
        (config.mqtt, *config.mqtt.more),
        forget=records.delete_dead_letters,
        max_future=config.ingest.max_future if config.clock.source == "wall" else None,
    )
    ingest = Ingest(
        feed,
        store,
        records,
        section=config.ingest,
        now_us=wall_us,
        assets=records,
        late=late_watch(config, records),
    )
    while feed.waiting:
        if not ingest.step():
            raise StoreUnavailable(f"{ingest.counts.trouble}; the dead letters are kept, try again later")
    return ingest.counts


def open_records(config: Config) -> Records:
    """The service's own records, migrated to the present schema. Raises RecordsError."""
    from pm.records import Records

    return Records.open(config.records.url, password=config.records.password.get_secret_value())


def load_folder(folder: Path, runtime: Runtime = "auto") -> TransformerForecaster:
    """The model in a folder. Raises ModelError."""
    from forecasting import predict

    loaded = predict.load(folder, runtime=runtime)
    log.info("%s runs in %s", loaded.version, loaded.runtime.name)
    return loaded


def load_forecaster(records: Records, name: str | None, runtime: Runtime = "auto") -> TransformerForecaster:
    """A model by its folder or its version; the champion when no name is given.

    Raises ModelError where there is none or it is damaged, RecordsError for an unknown version.
    """
    if name is None:
        champion = records.champion()
        if champion is None:
            raise ModelError("no model is champion yet; train one with 'pm train', or name a folder with --model")
        return load_folder(Path(champion.path), runtime)
    return load_folder(Path(name) if Path(name).is_dir() else Path(records.model(name).path), runtime)


def wall_now() -> datetime:
    """The machine's clock: the one place outside the MQTT session that reads it."""
    return datetime.now(UTC)


def wall_us() -> int:
    """The machine's clock in microseconds since the epoch."""
    return to_us(wall_now())


class WallClock:
    """The machine's clock less the grace that late readings are given."""

    def __init__(self, grace: timedelta) -> None:
        self._grace = grace

    def now(self) -> datetime | None:
        return wall_now() - self._grace


class RecordedClock:
    """The feed's watermark as ingest last wrote it down, perhaps in another process."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def now(self) -> datetime | None:
        return self._records.last_tick(CLOCK_TICK)


class Champion:
    """The champion as a Forecaster, loaded again when another is promoted."""

    def __init__(self, records: Records, runtime: Runtime = "auto") -> None:
        self._records = records
        self._runtime: Runtime = runtime
        self._loaded: TransformerForecaster | None = None

    def present(self) -> TransformerForecaster | None:
        champion = self._records.champion()
        if champion is None:
            return None
        if self._loaded is None or self._loaded.version != champion.version:
            self._loaded = load_forecaster(self._records, None, self._runtime)
            log.info("forecasting with champion %s", champion.version)
        return self._loaded


def local_broker(section: MqttSection) -> MqttSection:
    """The section with the address of a running service's embedded broker where no host is configured."""
    if section.host:
        return section
    if section.port == 0:
        raise FeedError(
            "mqtt.port = 0 lets the embedded broker take any port, which another process cannot find; set one"
        )
    return section.model_copy(update={"host": LOOPBACK})


def present(config: Config, records: Records) -> datetime:
    """Plant time now; the machine's clock where the feed has told nothing yet."""
    return plant_clock(config, records).now() or wall_now()


def late_watch(config: Config, records: Records) -> LateWatch:
    """What ingest tells of everything stored, so that forecasts are looked at again for what came late."""
    from pm.reassess import LateWatch

    by_wall = config.clock.source == "wall"
    return LateWatch(records, plant_clock(config, records), lambda: wall_now() if by_wall else present(config, records))


def plant_clock(config: Config, records: Records) -> Clock:
    """Plant time as the configuration says."""
    return WallClock(config.clock.grace) if config.clock.source == "wall" else RecordedClock(records)
