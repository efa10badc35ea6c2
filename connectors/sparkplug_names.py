"""Assets by group, edge node and device: names by template, and who had a name first. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

from connectors.topics import name_fault
from connectors.values import short

Nodes = Literal["auto", "always", "never"]


class Claim(NamedTuple):
    """What a node or a device is called."""

    asset: str | None
    """None where it is no asset."""
    refusal: str | None = None
    """Why it can be none although it would be: its messages are dead letters."""


class AssetNames:
    """Names given out, each to one node or device: two with one name would write over each other's readings."""

    def __init__(self, device_template: str, node_template: str, nodes: Nodes) -> None:
        """Templates with {group}, {node} and, for devices, {device}. nodes: whether an edge node's own metrics make it
        an asset: auto, where it has no devices."""
        self._device_template = device_template
        self._node_template = node_template
        self._nodes = nodes
        self._claims: dict[tuple[str, str, str], Claim] = {}
        self._owners: dict[str, tuple[str, str, str]] = {}
        self._with_devices: set[tuple[str, str]] = set()

    @property
    def node_waits(self) -> bool:
        """Whether it takes a while to tell if a node is an asset: a device's birth follows its node's."""
        return self._nodes == "auto"

    def node_has_devices(self, group: str, node: str) -> None:
        if (group, node) in self._with_devices:
            return
        self._with_devices.add((group, node))
        if self._nodes == "auto":
            self._claims[group, node, ""] = Claim(None)

    def claim(self, group: str, node: str, device: str) -> Claim:
        """device: empty for the node itself."""
        claim = self._claims.get((group, node, device))
        if claim is None:
            claim = self._claims[group, node, device] = self._new(group, node, device)
        return claim

    def _new(self, group: str, node: str, device: str) -> Claim:
        if not device and self._nodes == "never":
            return Claim(None)
        template = self._device_template if device else self._node_template
        name = template.replace("{group}", group).replace("{node}", node).replace("{device}", device)
        if fault := name_fault(name):
            return Claim(None, f"asset {short(name)} {fault}")
        owner = self._owners.setdefault(name, (group, node, device))
        if owner != (group, node, device):
            return Claim(
                None,
                f"asset {short(name)} is {'/'.join(filter(None, owner))} already; "
                'tell them apart with sparkplug.asset, as "{group}/{node}/{device}"',
            )
        return Claim(name)
