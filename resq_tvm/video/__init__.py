"""Frames in and out: files, folders, cameras, raw streams, generated clips."""
