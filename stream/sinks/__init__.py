"""Sinks: they write, show or send processed frames."""
