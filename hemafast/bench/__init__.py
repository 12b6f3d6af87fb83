"""Each station of the engine timed alone and end to end."""
