"""One MQTT 5 connection through paho: how it is opened, refused, lost and found again. For feed and publisher."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from typing import Any, Final

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from pm.config import MqttSection
from pm.errors import FeedError, FeedUnavailable

log = logging.getLogger(__name__)

_CONNECT_SECONDS: Final = 10.0
_RECONNECT_SECONDS: Final = (1, 30)
"""Wait before the first attempt to connect again, and at most; it doubles between."""

_MENDS: Final = {
    "Bad user name or password": "check mqtt.username and mqtt.password",
    "Not authorized": "check mqtt.username and mqtt.password, and the broker's access list",
    "Client identifier not valid": "choose another mqtt.client_id",
    "Unsupported protocol version": "the broker must speak MQTT 5",
    "Bad authentication method": "the broker wants a way to log in that pm does not have; allow user and password",
    "Banned": "ask whoever runs the broker",
}
"""Refusals that trying again cannot mend, and what can."""


class MqttSession:
    """A connection that keeps itself up.

    Each connection has a number, its `generation`. `lock` is held while it changes, so that whoever holds the lock
    and sees the present generation speaks to that very connection, or to none.
    """

    def __init__(
        self,
        section: MqttSection,
        *,
        client_id: str,
        clean_start: bool,
        receive_maximum: int | None = None,
        manual_ack: bool = False,
        on_open: Callable[[bool], None],
    ) -> None:
        """on_open: called on the network thread at each connection, with whether the broker had kept the session."""
        if not section.host:
            raise FeedError("mqtt.host is empty; name the broker, or start the embedded one and name its address")
        self.generation = 0
        self.lock = threading.Lock()
        self.name = f"broker {section.host}:{section.port}"
        self._section = section
        self._clean_start = clean_start
        self._receive_maximum = receive_maximum
        self._on_open = on_open
        self._up = threading.Event()
        self._answered = threading.Event()
        self._refusal: str | None = None
        self._told = ""
        self._closing = False
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5, manual_ack=manual_ack
        )
        self.client.reconnect_delay_set(*_RECONNECT_SECONDS)
        self.client.connect_timeout = _CONNECT_SECONDS
        if section.username:
            self.client.username_pw_set(section.username, section.password.get_secret_value())
        if section.tls:
            self._set_tls()
        self.client.on_connect = self._connected
        self.client.on_connect_fail = self._failed
        self.client.on_disconnect = self._disconnected

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    def open(self) -> None:
        """Connect, and keep connected from then on.

        Raises FeedError where the broker or its certificate is refused for good. A broker that is merely away is not
        an error: it is logged, and tried again in the background.
        """
        section = self._section
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        if not self._clean_start:
            properties.SessionExpiryInterval = int(section.session_expiry.total_seconds())
        if self._receive_maximum is not None:
            properties.ReceiveMaximum = self._receive_maximum
        where: dict[str, Any] = {
            "host": section.host,
            "port": section.port,
            "keepalive": max(1, int(section.keepalive.total_seconds())),
            "clean_start": self._clean_start,
            "properties": properties,
        }
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

    def _set_tls(self) -> None:
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
        self.client.tls_set_context(context)

    def _connected(
        self, client: paho.Client, userdata: Any, flags: paho.ConnectFlags, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
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
        log.info("%s: connected%s", self.name, ", session resumed" if flags.session_present else "")
        self._told = ""
        self._up.set()
        self._on_open(bool(flags.session_present))
        self._answered.set()

    def _failed(self, client: paho.Client, userdata: Any) -> None:
        self._answered.set()

    def _disconnected(
        self, client: paho.Client, userdata: Any, flags: paho.DisconnectFlags, reason: ReasonCode, properties: Any
    ) -> None:
        with self.lock:
            self.generation += 1
        if self._up.is_set():
            self._up.clear()
            if not self._closing:
                log.warning("%s: connection lost (%s); trying again", self.name, reason)
        elif not self._answered.is_set():
            hint = "" if self._section.tls else "; where its port speaks TLS, set mqtt.tls = true"
            log.warning("%s closed the connection without an answer%s; trying again", self.name, hint)
            self._answered.set()


def unavailable(session: MqttSession, what: str) -> FeedUnavailable:
    return FeedUnavailable(f"{session.name}: {what}; check that the broker runs and can be reached")
