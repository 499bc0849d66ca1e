"""Worlds small enough to enumerate, and the update rules at work on tables over them."""
