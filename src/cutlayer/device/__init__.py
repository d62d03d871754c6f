"""What runs on the weak machine. Never imports `server`."""
