"""The only place that calls HTTP: connections, keep-alive, resolver, the guard against inner addresses."""

from overlayd.outbound.client import Outbound
from overlayd.outbound.reasons import Reason
from overlayd.outbound.request import OutboundAnswer, OutboundRequest
from overlayd.outbound.settings import OutboundSettings

__all__ = ["Outbound", "OutboundAnswer", "OutboundRequest", "OutboundSettings", "Reason"]
