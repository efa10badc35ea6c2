"""Rules that turn what a sender measures in into the unit of a point, worked out once, from the configuration. Pure.

A rule is two units (`degF -> degC`, `psi -> bar`; by pint's register of units) or a line (`* 0.1 - 40`, for the raw
counts of a controller). At run time a rule is two multiplications and a subtraction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

from pm.errors import FeedError

_NUMBER: Final = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?"
_LINE: Final = re.compile(rf"\*\s*({_NUMBER})(?:\s*([+-])\s*({_NUMBER}))?", re.ASCII)
_EXACT: Final = 2**53
_REFERENCE: Final = "https://pint.readthedocs.io"


@dataclass(frozen=True, slots=True)
class Conversion:
    """`(value - zero) * over / under`, which gives round numbers where the units do: 212 degF is 100.0 degC."""

    zero: float
    over: float
    under: float

    def __call__(self, value: float) -> float:
        return (value - self.zero) * self.over / self.under


def conversion(rule: str) -> Conversion:
    """The conversion that `rule` means. Raises FeedError for an unknown unit and for units of different kinds."""
    if line := _LINE.fullmatch(rule.strip()):
        factor, offset = Fraction(line[1]), Fraction(line[3] or 0) * (-1 if line[2] == "-" else 1)
    else:
        source, arrow, target = (part.strip() for part in rule.partition("->"))
        if not arrow or not source or not target:
            raise FeedError(f'unit rule {rule!r}: write it as "degF -> degC" or as "* 0.1 - 40"')
        factor, offset = _line_between(rule, source, target)
    if not factor:
        raise FeedError(f"unit rule {rule!r}: its factor is 0, which makes every value the same")
    return _exact(factor, offset)


def _line_between(rule: str, source: str, target: str) -> tuple[Fraction, Fraction]:
    from pint.errors import DefinitionSyntaxError, DimensionalityError, PintError

    units = _units()
    try:
        if _angular(units, source) != _angular(units, target):
            raise FeedError(
                f"unit rule {rule!r}: one is an angle and the other is not, so that a turn would count as 6.28; "
                'write "rpm -> rps", or the factor'
            )
        zero, one, two = (
            units.Quantity(Fraction(number), units.Unit(source)).to(units.Unit(target)).magnitude for number in range(3)
        )
    except DimensionalityError:  # its own text cannot write fractions
        raise FeedError(f"unit rule {rule!r}: these units measure different things") from None
    except (PintError, DefinitionSyntaxError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FeedError(f"unit rule {rule!r}: {said}; units as {_REFERENCE} names them, or the factor") from None
    if two - one != one - zero:
        raise FeedError(f"unit rule {rule!r}: these units are no line of each other; convert at the sender")
    return Fraction(one - zero), Fraction(zero)


def _angular(units: Any, name: str) -> bool:
    return "radian" in dict(units.get_root_units(units.Unit(name))[1]._units)


def _exact(factor: Fraction, offset: Fraction) -> Conversion:
    zero = float(-offset / factor)
    if abs(factor.numerator) <= _EXACT and factor.denominator <= _EXACT:
        return Conversion(zero, float(factor.numerator), float(factor.denominator))
    return Conversion(zero, float(factor), 1.0)


@lru_cache(maxsize=1)
def _units() -> Any:
    from pint import UnitRegistry  # takes a second, and only who converts units pays it

    return UnitRegistry(non_int_type=Fraction)
