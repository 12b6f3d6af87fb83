"""Hostile input for everything that reads a user's files: what it is made of, who reads it, and the search."""
