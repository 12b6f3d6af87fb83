"""A prepared data set in, batches on the device out."""
