"""One loop for every stage: optimiser, schedule, moving average, checkpoints, meters, tracking."""
