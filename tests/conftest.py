"""Settings of the whole suite. Real servers stand in tests/servers/, imported where they are used."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# The machine may be busy with brokers and browsers: a deadline per example would judge the machine, not the code.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")
