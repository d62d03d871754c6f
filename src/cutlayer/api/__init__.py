"""What the commands do, as functions of Python: `from cutlayer import simulate, compare, serve, join`."""
