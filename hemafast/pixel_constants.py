"""Numbers behind changes to pixels that are written more than once: for the graph, its kernels, torch, the network."""

LEVELS = (199.0, 166.0, 184.0)
SPREADS = (54.0, 66.0, 26.0)
"""Mean and standard deviation of red, green and blue, 0 to 255, that standardised images have: about those of cells of
Acevedo_20 and Matek_19."""
LEAST_SPREAD = 2.5
"""Added to the standard deviation of an image, so that one of a single colour stays one."""

WHITE = 0.95
"""The white point of a channel: the smallest value that at least this share of the pixels does not exceed."""
SOFT = 0.05
"""Width of the edge between an image and its new background, as a share of half the side."""
REACH = 3.0
"""Standard deviations from its centre at which a Gaussian blur ends."""
DENSITY_STEPS = 8192.0
"""Steps per unit of natural optical density: log(256) fits into 16 bits."""
