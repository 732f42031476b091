"""The node's own keys: found in files, in credentials of the service manager, or on tokens (PKCS#11)."""

from overlayd.signers.checkpoint_keys import NodeCheckpointKeys
from overlayd.signers.curve_keys import open_curve_key
from overlayd.signers.settings import NodeKeySettings

__all__ = ["NodeCheckpointKeys", "NodeKeySettings", "open_curve_key"]
