"""What old packets become: reduced by their stream's rule, and with the log's whole beginning cut in the end."""

from overlayd.storage.retention.settings import RetentionSettings
from overlayd.storage.retention.task import Retention

__all__ = ["Retention", "RetentionSettings"]
