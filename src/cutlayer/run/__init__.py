"""A run: its inputs, its rounds, its end; on a simulated fleet, a real one, or only rehearsed."""
