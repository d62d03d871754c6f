"""The shapes of a round, each a loop that is read from top to bottom."""
