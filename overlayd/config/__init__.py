"""The configuration: TOML files, environment and flags into frozen settings, every mistake named."""

from overlayd.config.convert import Origin
from overlayd.config.load import Flag, Loaded, load_settings
from overlayd.config.settings import (
    DefaultsSettings,
    MetricsSettings,
    NodeSettings,
    Settings,
    StreamSettings,
)

__all__ = [
    "DefaultsSettings",
    "Flag",
    "Loaded",
    "MetricsSettings",
    "NodeSettings",
    "Origin",
    "Settings",
    "StreamSettings",
    "load_settings",
]
