"""Remote sources of the chain: services and nodes that broadcast, answer, prove and list headers. None is believed."""
