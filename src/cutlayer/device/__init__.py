"""The code that runs on the weak machine. Never imports `server`."""
