"""What a sender says of the quality of a value: good, uncertain or bad. Pure."""

from __future__ import annotations

from typing import Any, Final, Literal

from pm.domain import Quality

QualityCodes = Literal["opc-da", "opc-ua"]

_WORDS: Final = {
    "good": Quality.GOOD, "ok": Quality.GOOD, "valid": Quality.GOOD,
    "uncertain": Quality.UNCERTAIN, "questionable": Quality.UNCERTAIN, "suspect": Quality.UNCERTAIN,
    "bad": Quality.BAD, "invalid": Quality.BAD, "error": Quality.BAD, "stale": Quality.BAD,
}  # fmt: skip
_UA: Final = (Quality.GOOD, Quality.UNCERTAIN, Quality.BAD, Quality.BAD)
_DA: Final = (Quality.BAD, Quality.UNCERTAIN, Quality.BAD, Quality.GOOD)


def quality_of(said: Any, codes: QualityCodes = "opc-da") -> Quality:
    """The quality that a payload carries: a word, true or false, or a code of OPC. Absent (None) is good.

    Codes: OPC DA has the quality in bits 6 and 7 of a byte (192 is good, 64 uncertain, 0 bad), OPC UA in the two
    highest of 32 bits (0 is good, 0x40000000 uncertain, 0x80000000 bad). OPC UA's names count by how they begin
    ("UncertainLastUsableValue"). Anything else is uncertain, which is what it is.
    """
    if said is None or said is True:
        return Quality.GOOD
    if said is False:
        return Quality.BAD
    if type(said) is int:
        if codes == "opc-ua" and 0 <= said < 1 << 32:
            return _UA[said >> 30]
        if codes == "opc-da" and 0 <= said < 1 << 16:  # the high byte is the vendor's own
            return _DA[(said >> 6) & 3]
    if type(said) is str:
        word = said.strip().lower()
        if word.isdecimal() and word.isascii() and len(word) <= 10:
            return quality_of(int(word), codes)
        if word in _WORDS:
            return _WORDS[word]
        for quality in Quality:
            if word.startswith(quality.value) and word.isalnum():
                return quality
    return Quality.UNCERTAIN
