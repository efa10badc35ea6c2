"""What a Sparkplug B host bears at most, and how long it waits where nobody configures it."""

from __future__ import annotations

from typing import Final

MOST_AHEAD: Final = 100
"""Messages ahead of their turn at most: numbers wrap at 256, and of these half must stay tellable from late ones."""
HELD_BYTES: Final = 32 << 20
"""Bytes that wait for births at most, over all nodes; beyond that the oldest are read as if their time was up."""
MOST_NODES: Final = 100_000
ASK_AGAIN_US: Final = (10_000_000, 300_000_000)
"""Until a node is asked again for its births, at first and at most; it doubles between."""
NODE_ALONE_US: Final = 2_000_000
"""How long the values of a node's birth wait for a device's, where nodes are assets only without devices."""
