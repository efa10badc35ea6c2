"""What the simulated plant is made of: kinds of assets, their points, how they fail and how that shows.

Every number is chosen to be plausible for its kind of machine, not taken from any real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pm.domain import FailureMode, Point


class Mode(StrEnum):
    """Ways to fail; the value is the code that failure and maintenance events carry."""

    BEARING = "bearing"
    SEAL = "seal"
    LUBRICATION = "lubrication"
    WINDING = "winding"
    CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Signature:
    """How one way to fail builds up and shows."""

    about: str
    share: float
    """Weight among an asset's failures, before what its kind cannot have is left out."""
    lead: tuple[float, float]
    """Hours of wear between onset and failure: lowest and highest. (0, 0): no warning at all."""
    shape: float
    """Weibull shape of the life in hours of wear: 1 has no memory, 3 wears out."""
    growth: float
    """Severity is progress ** growth, progress running from 0 at onset to 1 at failure; under 1 it shows at once."""
    effects: Mapping[str, float]
    """Change of each point at full severity, as a fraction of its value (temperatures: of the rise over ambient)."""
    late_effects: Mapping[str, float]
    """The same for points that follow only near the end (with the cube of progress)."""
    error: str
    """Error code that tends to come before it."""
    downtime: tuple[float, float]
    """Hours that the repair takes: lowest and highest."""


SIGNATURES: Mapping[Mode, Signature] = {
    Mode.BEARING: Signature(
        about="a bearing wears out: vibration grows over days, then the bearing heats",
        share=0.45,
        lead=(120.0, 260.0),
        shape=3.0,
        growth=2.0,
        effects={"vibration": 1.2, "current": 0.02},
        late_effects={"bearing_temperature": 0.35},
        error="error_vibration",
        downtime=(8.0, 30.0),
    ),
    Mode.SEAL: Signature(
        about="a seal leaks: pressure and flow fall within two or three days",
        share=0.27,
        lead=(40.0, 85.0),
        shape=2.0,
        growth=0.8,
        effects={"pressure": -0.16, "flow": -0.18, "current": -0.04},
        late_effects={"vibration": 0.15},
        error="error_pressure",
        downtime=(6.0, 20.0),
    ),
    Mode.LUBRICATION: Signature(
        about="lubrication fails: oil and bearings heat within two or three days",
        share=0.27,
        lead=(40.0, 85.0),
        shape=2.0,
        growth=0.7,
        effects={"oil_temperature": 0.45, "bearing_temperature": 0.40, "current": 0.08},
        late_effects={"vibration": 0.20},
        error="error_temperature",
        downtime=(4.0, 16.0),
    ),
    Mode.WINDING: Signature(
        about="winding insulation breaks down: current and heat rise, speed falls, within a day",
        share=0.17,
        lead=(9.0, 22.0),
        shape=1.5,
        growth=0.5,
        effects={"current": 0.20, "winding_temperature": 0.40, "speed": -0.025, "vibration": 0.12},
        late_effects={},
        error="error_current",
        downtime=(12.0, 48.0),
    ),
    Mode.CONTROL: Signature(
        about="a control board or fuse fails without any warning",
        share=0.125,
        lead=(0.0, 0.0),
        shape=1.0,
        growth=1.0,
        effects={},
        late_effects={},
        error="error_drive",
        downtime=(3.0, 12.0),
    ),
}

FAILURE_MODES = tuple(FailureMode(mode.value, SIGNATURES[mode].about) for mode in Mode)


@dataclass(frozen=True, slots=True)
class Measured:
    """A point and how its sensor behaves."""

    point: Point
    noise: float
    """Standard deviation of its noise, as a fraction of the value (temperatures: of the rise over ambient)."""
    decimals: int
    lag_hours: float = 0.0
    """Time constant with which it follows; 0 at once."""
    slip: tuple[float, float] | None = None
    """(factor, offset) of a unit slip: bar sent as psi, degrees Celsius as Fahrenheit."""


MEASURED: Mapping[str, Measured] = {
    measured.point.name: measured
    for measured in (
        Measured(Point("load", "%", 0.0, 130.0, "share of rated power that the line asks for"), 0.015, 1),
        Measured(Point("flow", "m3/h", 0.0, 400.0, "volume flow"), 0.018, 2, slip=(4.402868, 0.0)),
        Measured(Point("pressure", "bar", 0.0, 20.0, "discharge pressure"), 0.012, 3, slip=(14.503774, 0.0)),
        Measured(Point("speed", "rpm", 0.0, 4000.0, "shaft speed"), 0.003, 1),
        Measured(Point("current", "A", 0.0, 400.0, "motor current, mean of three phases"), 0.018, 2),
        Measured(Point("vibration", "mm/s", 0.0, 30.0, "vibration velocity, RMS"), 0.06, 3),
        Measured(
            Point("bearing_temperature", "°C", -40.0, 130.0, "drive-end bearing"),
            0.025,
            2,
            lag_hours=2.0,
            slip=(1.8, 32.0),
        ),
        Measured(
            Point("winding_temperature", "°C", -40.0, 180.0, "hottest winding"),
            0.025,
            2,
            lag_hours=1.5,
            slip=(1.8, 32.0),
        ),
        Measured(Point("oil_temperature", "°C", -40.0, 130.0, "oil sump"), 0.02, 2, lag_hours=4.0, slip=(1.8, 32.0)),
        Measured(Point("ambient_temperature", "°C", -40.0, 60.0, "air beside the asset"), 0.0, 2, slip=(1.8, 32.0)),
    )
}

POINTS = tuple(measured.point for measured in MEASURED.values())


@dataclass(frozen=True, slots=True)
class Response:
    """A point's value while running: at * (idle + (1 - idle) * load ** power); temperatures: the rise over ambient."""

    at: float
    """Value at full load."""
    idle: float
    """Share of it that does not depend on load."""
    power: float = 1.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of asset."""

    name: str
    responses: Mapping[str, Response]
    """By point; a point that is not here this kind does not have."""
    modes: tuple[Mode, ...]
    variants: tuple[str, ...]
    rated_kw: tuple[float, ...]
    """Rated power of each variant; electrical and flow values scale with it."""


KINDS: tuple[Kind, ...] = (
    Kind(
        "pump",
        {
            "load": Response(100.0, 0.0),
            "flow": Response(120.0, 0.10),
            "pressure": Response(6.5, 0.85),
            "speed": Response(2950.0, 0.90),
            "current": Response(62.0, 0.35),
            "vibration": Response(2.6, 0.65),
            "bearing_temperature": Response(38.0, 0.50),
        },
        (Mode.BEARING, Mode.SEAL, Mode.WINDING, Mode.CONTROL),
        ("P-32", "P-50", "P-80"),
        (22.0, 30.0, 45.0),
    ),
    Kind(
        "motor",
        {
            "load": Response(100.0, 0.0),
            "speed": Response(1480.0, 0.96),
            "current": Response(85.0, 0.30),
            "vibration": Response(1.9, 0.70),
            "bearing_temperature": Response(34.0, 0.55),
            "winding_temperature": Response(62.0, 0.35, 2.0),
        },
        (Mode.BEARING, Mode.LUBRICATION, Mode.WINDING, Mode.CONTROL),
        ("M-160", "M-200"),
        (37.0, 55.0),
    ),
    Kind(
        "compressor",
        {
            "load": Response(100.0, 0.0),
            "flow": Response(90.0, 0.15),
            "pressure": Response(8.2, 0.90),
            "speed": Response(2950.0, 0.93),
            "current": Response(110.0, 0.45),
            "vibration": Response(3.4, 0.70),
            "bearing_temperature": Response(44.0, 0.55),
            "oil_temperature": Response(48.0, 0.55),
            "ambient_temperature": Response(0.0, 0.0),
        },
        (Mode.BEARING, Mode.SEAL, Mode.WINDING, Mode.CONTROL),
        ("C-55", "C-75", "C-90"),
        (55.0, 75.0, 90.0),
    ),
    Kind(
        "gearbox",
        {
            "load": Response(100.0, 0.0),
            "speed": Response(980.0, 0.92),
            "vibration": Response(3.0, 0.60),
            "bearing_temperature": Response(36.0, 0.50),
            "oil_temperature": Response(42.0, 0.45),
        },
        (Mode.BEARING, Mode.LUBRICATION, Mode.CONTROL),
        ("G-2", "G-3"),
        (30.0, 60.0),
    ),
    Kind(
        "conveyor",
        {
            "load": Response(100.0, 0.0),
            "speed": Response(420.0, 0.95),
            "current": Response(38.0, 0.40),
            "vibration": Response(2.2, 0.75),
            "bearing_temperature": Response(28.0, 0.55),
            "ambient_temperature": Response(0.0, 0.0),
        },
        (Mode.BEARING, Mode.LUBRICATION, Mode.WINDING, Mode.CONTROL),
        ("B-800", "B-1200"),
        (11.0, 18.5),
    ),
)
"""Asset number i is of kind i modulo five."""
