"""One MQTT connection through paho: how it is opened, refused, lost and found again. For feed and publisher."""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from pm.config import BrokerSection
from pm.errors import FeedError, FeedUnavailable

log = logging.getLogger(__name__)

_CONNECT_SECONDS: Final = 10.0
_RECONNECT_SECONDS: Final = (1.0, 30.0)
"""Wait before the first attempt to connect again, and at most; it doubles between. Of each a random part is waited,
half at least, so that a thousand clients of a broker that restarts do not all come at once."""
_LASTING_SECONDS: Final = 10.0
"""A connection that stood for so long was a good one; after it, waiting begins anew."""
_SHORT_LIVED: Final = 3
"""So many in a row that were not are one trouble, told once."""

_OLD_VERSION: Final = "Unsupported protocol version"
_TAKEN_OVER: Final = "Session taken over"
_MENDS: Final = {
    "Bad user name or password": "check mqtt.username and mqtt.password",
    "Not authorized": "check mqtt.username and mqtt.password, and the broker's access list",
    "Client identifier not valid": "choose another mqtt.client_id",
    _OLD_VERSION: "the broker must speak MQTT 5 or 3.1.1; see mqtt.version",
    "Bad authentication method": "the broker wants a way to log in that pm does not have; allow user and password",
    "Banned": "ask whoever runs the broker",
}
"""Refusals that trying again cannot mend, and what can."""


def paho_client(*, client_id: str, protocol: MQTTProtocolVersion, **options: Any) -> paho.Client:
    """Stock paho."""
    return paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=protocol, **options)


class MqttSession:
    """A connection that keeps itself up.

    Each connection has a number, its `generation`. `lock` is held while it changes, so that whoever holds the lock
    and sees the present generation speaks to that very connection, or to none.
    """

    def __init__(
        self,
        section: BrokerSection,
        *,
        client_id: str,
        clean_start: bool,
        receive_maximum: int | None = None,
        make: Callable[..., paho.Client] = paho_client,
        prepare: Callable[[paho.Client], None],
        on_open: Callable[[bool], None],
        chance: random.Random | None = None,
    ) -> None:
        """make: makes the paho client, of `client_id`, `protocol` and, before MQTT 5, `clean_session`.

        prepare: sets callbacks and last will on it. There may be a second client, where a broker refuses MQTT 5.
        on_open: called on the network thread at each connection, with whether the broker had kept the session.
        chance: decides how long is waited between attempts.
        """
        if not section.host:
            raise FeedError("mqtt.host is empty; name the broker, or start the embedded one and name its address")
        self.generation = 0
        self.lock = threading.Lock()
        self.name = f"broker {section.host}:{section.port}"
        self._section = section
        self._client_id = client_id
        self._clean_start = clean_start
        self._receive_maximum = receive_maximum
        self._make = make
        self._prepare = prepare
        self._on_open = on_open
        self._chance = chance or random.Random()  # noqa: S311 - nothing secret hangs on it
        self._failures = 0
        self._opened = 0.0
        self._short_lived = 0
        self._up = threading.Event()
        self._answered = threading.Event()
        self._refusal: str | None = None
        self._told = ""
        self._closing = False
        self._tls = self._tls_context() if section.tls else None
        self.client = self._new_client(paho.MQTTv311 if section.version == "3.1.1" else paho.MQTTv5)

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    @property
    def mqtt5(self) -> bool:
        """Whether MQTT 5 is spoken, or 3.1.1."""
        return self.client.protocol == paho.MQTTv5

    def open(self) -> None:
        """Connect, and keep connected from then on.

        Raises FeedError where the broker or its certificate is refused for good. A broker that is merely away is not
        an error: it is logged, and tried again in the background.
        """
        section = self._section
        where = self._where()
        try:
            self.client.connect(**where)
        except ssl.SSLCertVerificationError as error:
            raise FeedError(
                f"{self.name}: its certificate is not trusted ({error.verify_message}); "
                "set mqtt.ca_file to the authority that signed it, and mqtt.host to a name that it carries"
            ) from None
        except ssl.SSLError as error:
            raise FeedError(
                f"{self.name}: no TLS with it ({error.reason or error}); "
                "set mqtt.port to its TLS port (8883 is usual), or mqtt.tls = false"
            ) from None
        except (OSError, ValueError) as error:
            hint = ""
            if section.tls and isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError):
                hint = "; where its port does not speak TLS, set mqtt.port or mqtt.tls"
            log.warning("%s cannot be reached (%s)%s; trying again", self.name, error, hint)
            self._told = str(error)
            self._wait_longer(self.client)
            self.client.connect_async(**where)
        self.client.loop_start()
        if not self._answered.wait(_CONNECT_SECONDS):
            log.warning("%s has not answered in %d s; trying on", self.name, _CONNECT_SECONDS)
        if self._refusal is not None:
            refusal = self._refusal
            self.close()
            raise FeedError(refusal)

    def close(self) -> None:
        """Send what is queued, end the connection and the thread; the session stays with the broker."""
        self._closing = True
        self.client.disconnect()
        self.client.loop_stop()
        self._up.clear()

    def _new_client(self, protocol: MQTTProtocolVersion) -> paho.Client:
        before_5 = {} if protocol == paho.MQTTv5 else {"clean_session": self._clean_start}
        client = self._make(client_id=self._client_id, protocol=protocol, **before_5)
        client.connect_timeout = _CONNECT_SECONDS
        if self._section.username:
            client.username_pw_set(self._section.username, self._section.password.get_secret_value())
        if self._tls is not None:
            client.tls_set_context(self._tls)
        client.on_connect = self._connected
        client.on_connect_fail = self._failed
        client.on_disconnect = self._disconnected
        self._prepare(client)
        return client

    def _where(self) -> dict[str, Any]:
        """What connects the present client."""
        section = self._section
        where: dict[str, Any] = {
            "host": section.host,
            "port": section.port,
            "keepalive": max(1, int(section.keepalive.total_seconds())),
        }
        if not self.mqtt5:
            return where
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        if not self._clean_start:
            properties.SessionExpiryInterval = int(section.session_expiry.total_seconds())
        if self._receive_maximum is not None:
            properties.ReceiveMaximum = self._receive_maximum
        return {**where, "clean_start": self._clean_start, "properties": properties}

    def _tls_context(self) -> ssl.SSLContext:
        section = self._section
        try:
            context = ssl.create_default_context(cafile=section.ca_file or None)
            if section.cert_file:
                # An empty password, so that a locked key is an error here and not a question on the terminal.
                context.load_cert_chain(section.cert_file, section.key_file or None, password="")
        except (OSError, ValueError) as error:
            raise FeedError(
                f"{self.name}: a certificate file cannot be used ({error}); "
                "check mqtt.ca_file, mqtt.cert_file and mqtt.key_file"
            ) from None
        return context

    def _wait_longer(self, client: paho.Client) -> None:
        """Say how long paho is to wait before its next attempt. It would double the wait itself, without chance."""
        least, most = _RECONNECT_SECONDS
        seconds = min(most, least * 2.0 ** min(self._failures, 10)) * self._chance.uniform(0.5, 1.0)
        self._failures += 1
        client.reconnect_delay_set(seconds, seconds)  # type: ignore[arg-type]  # it only adds and compares them

    def _connected(
        self, client: paho.Client, userdata: Any, flags: paho.ConnectFlags, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
            if str(reason) == _OLD_VERSION and self._section.version == "auto" and client.protocol == paho.MQTTv5:
                self._fall_back(client)
                return
            mend = _MENDS.get(str(reason))
            text = f"{self.name} refused the connection: {reason}"
            if mend is not None:
                text = f"{text}; {mend}"
                self._refusal = text
            if text != self._told:
                log.error("%s", text)
                self._told = text
            self._answered.set()
            return
        with self.lock:
            self.generation += 1
        spoken = "" if client.protocol == paho.MQTTv5 else " with MQTT 3.1.1"
        log.info("%s: connected%s%s", self.name, spoken, ", session resumed" if flags.session_present else "")
        self._told = ""
        self._opened = time.monotonic()
        self._up.set()
        self._on_open(bool(flags.session_present))
        self._answered.set()

    def _fall_back(self, refused: paho.Client) -> None:
        """Go on with MQTT 3.1.1, by another client, since paho fixes the version when a client is made."""
        if self._closing:
            return
        log.warning("%s does not speak MQTT 5; going on with 3.1.1", self.name)
        refused.on_disconnect = None
        refused.disconnect()
        self.client = self._new_client(paho.MQTTv311)
        self.client.connect_async(**self._where())
        self.client.loop_start()

    def _failed(self, client: paho.Client, userdata: Any) -> None:
        self._wait_longer(client)
        why = getattr(client, "failure", None)
        if why is not None and str(why) != self._told:
            self._told = str(why)
            log.warning("%s cannot be reached (%s); trying again", self.name, why)
        self._answered.set()

    def _disconnected(
        self, client: paho.Client, userdata: Any, flags: paho.DisconnectFlags, reason: ReasonCode, properties: Any
    ) -> None:
        with self.lock:
            self.generation += 1
        if self._up.is_set():
            lasted = time.monotonic() - self._opened >= _LASTING_SECONDS
            self._short_lived = 0 if lasted else self._short_lived + 1
            if lasted:
                self._failures = 0
            self._up.clear()
            if not self._closing:
                self._tell_lost(str(reason))
        elif not self._answered.is_set():
            hint = "" if self._section.tls else "; where its port speaks TLS, set mqtt.tls = true"
            log.warning("%s closed the connection without an answer%s; trying again", self.name, hint)
            self._answered.set()
        self._wait_longer(client)

    def _tell_lost(self, reason: str) -> None:
        if reason == _TAKEN_OVER or self._short_lived == _SHORT_LIVED:
            log.error(
                "%s: connection lost (%s) again and again; another client may be connecting as %r: "
                "give each process its own mqtt.client_id",
                self.name,
                reason,
                self._client_id,
            )
        elif self._short_lived < _SHORT_LIVED:
            log.warning("%s: connection lost (%s); trying again", self.name, reason)


def unavailable(session: MqttSession, what: str) -> FeedUnavailable:
    return FeedUnavailable(f"{session.name}: {what}; check that the broker runs and can be reached")
