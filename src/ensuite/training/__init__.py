"""How a model learns: one loop, checkpoints, resume, schedules, trackers."""
