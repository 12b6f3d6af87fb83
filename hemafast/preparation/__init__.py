"""Archives in, a prepared data set out."""
