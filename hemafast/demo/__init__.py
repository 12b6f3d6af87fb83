"""Drawn white blood cells, so that the first run needs no data."""
