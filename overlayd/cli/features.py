"""Every feature whose tables this version knows."""

from overlayd.storage.migrations import FEATURES, Feature


def known_features() -> tuple[Feature, ...]:
    """The log's own and those of all parts, switched on or not."""
    from overlayd.config.dialects import AgentPipeSettings, agentpipe_features
    from overlayd.daemon.serving import FEATURES as OF_PARTS  # brings the whole node, which --help doesn't need

    return (*FEATURES, *OF_PARTS, *agentpipe_features(AgentPipeSettings()))
