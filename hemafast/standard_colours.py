"""The colours that standardised images have: in the input graph, in its kernels, and in the network."""

LEVELS = (199.0, 166.0, 184.0)
SPREADS = (54.0, 66.0, 26.0)
"""Mean and standard deviation of red, green and blue, 0 to 255, that standardised images have: about those of cells of
Acevedo_20 and Matek_19."""
LEAST_SPREAD = 2.5
"""Added to the standard deviation of an image, so that one of a single colour stays one."""
