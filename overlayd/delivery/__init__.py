"""Delivery: what follows the log and hands it to readers. It never calls back into what came before the append."""
