"""A prepared data set in, one page and pictures for papers out: what is in it, before anything is trained on it."""
