"""A file of updates and a journal of outcomes: one bulk job that survives a crash."""
