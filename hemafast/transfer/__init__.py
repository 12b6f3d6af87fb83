"""Other laboratories: a trained model is adapted to their images, with few labels or none."""
