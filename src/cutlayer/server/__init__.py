"""What runs on the strong machine: the coordinator, the server steps, evaluation, checkpoints."""
