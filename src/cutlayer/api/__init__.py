"""The commands as functions of Python: `from cutlayer import simulate, compare, serve, join`."""
