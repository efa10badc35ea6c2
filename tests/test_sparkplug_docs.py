"""docs/sparkplug.md holds the specification against tests: all named there exist, and no statement stands twice."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from pm import config

PAGE = (Path(__file__).parent.parent / "docs" / "sparkplug.md").read_text(encoding="utf-8")


def existing() -> set[str]:
    return {
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_test_named_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 40 and named <= existing()


def test_every_assertion_stands_once_and_beside_a_test_or_a_reason() -> None:
    assertions = re.findall(r"`tck-id-([\w-]+)`", PAGE)
    assert len(assertions) == len(set(assertions)) == 299, "as many as the specification has"
    for heading, column in (("### What a host application", 2), ("### What edge nodes", 2)):
        rows = [row for row in PAGE.split(heading)[1].split("\n#")[0].splitlines() if "tck-id-" in row]
        assert rows and all("`test_" in row.strip("|").split("|")[column] for row in rows)
    reasons = [row for row in PAGE.split("### Not for")[1].splitlines() if "tck-id-" in row]
    assert reasons and all(len(row.strip("|").split("|")[0]) > 10 for row in reasons)


def test_the_page_shows_every_setting_at_its_default(tmp_path: Path) -> None:
    shown = re.search(r"\[sparkplug\]\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    (tmp_path / "pm.toml").write_text("[sparkplug]\n" + shown[1])
    loaded = config.load(tmp_path / "pm.toml", {}).sparkplug
    assert loaded.model_copy(update={"enabled": False}) == config.SparkplugSection()
    assert set(re.findall(r"^(\w+) = ", shown[1], re.MULTILINE)) == set(config.SparkplugSection.model_fields)
