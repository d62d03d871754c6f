"""One decision per file: what a method chooses between."""
