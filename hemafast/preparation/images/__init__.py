"""The bytes of one image: its form, its pixels by a reference decoder, and whether it can be a cell."""
