"""Runs in, one page out that needs no other file."""
