"""A checkpoint and a data set in; metrics, plots and pages out."""
