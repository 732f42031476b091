"""Values of the domain: packets, streams, cursors, errors. Pure; imports nothing of the floors above."""
