"""A prepared data set in, a page and pictures of its content out."""
