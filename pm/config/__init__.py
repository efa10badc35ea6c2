"""The configuration: `pm.toml` and the environment to frozen sections, with every violation in one message.

The docstring under each field is its documentation; `pm init` writes the same text as comments, so the two cannot
differ. Durations are text with a unit ("90s", "10m", "1h", "7d").
"""

from pm.config.commented import sample
from pm.config.feeds import BrokerSection, MappingSection, MqttSection, SparkplugSection
from pm.config.fields import Section, duration_text
from pm.config.files import load
from pm.config.learning import RetrainSection, TrainSection
from pm.config.sections import (
    AlertsSection,
    AssessSection,
    ClockSection,
    Config,
    DashboardSection,
    IngestSection,
    LogSection,
    MetricsSection,
    ModelsSection,
    PlantSection,
    RecordsSection,
    StoreSection,
)

__all__ = [
    "AlertsSection",
    "AssessSection",
    "BrokerSection",
    "ClockSection",
    "Config",
    "DashboardSection",
    "IngestSection",
    "LogSection",
    "MappingSection",
    "MetricsSection",
    "ModelsSection",
    "MqttSection",
    "PlantSection",
    "RecordsSection",
    "RetrainSection",
    "Section",
    "SparkplugSection",
    "StoreSection",
    "TrainSection",
    "duration_text",
    "load",
    "sample",
]
