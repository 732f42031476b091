"""What the node tells about itself: statistics of streams, traces, reports of its own faults."""
