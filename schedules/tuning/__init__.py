"""Measured schedules: tasks, search, runners and the database of what was measured."""
