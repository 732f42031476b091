"""Webhooks: packets posted to an HTTP endpoint, signed."""

from overlayd.delivery.webhooks.settings import WebhookSettings
from overlayd.delivery.webhooks.tables import WEBHOOKS_FEATURE
from overlayd.delivery.webhooks.webhooks import Webhooks

__all__ = ["WEBHOOKS_FEATURE", "WebhookSettings", "Webhooks"]
