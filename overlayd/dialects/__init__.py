"""Surfaces of outside systems, translated onto the core. Each is off until its table in the configuration says else."""
