"""The log: one writer, many readers, one SQLite file whose history can be proven."""

from overlayd.storage.checkpoint import Checkpoint
from overlayd.storage.housekeeping import StorageStats
from overlayd.storage.log import Log
from overlayd.storage.migrations import Feature
from overlayd.storage.opening import open_log
from overlayd.storage.settings import StorageSettings
from overlayd.storage.streams import Stream
from overlayd.storage.tail import Page

__all__ = ["Checkpoint", "Feature", "Log", "Page", "StorageSettings", "StorageStats", "Stream", "open_log"]
