"""What users write beside their images: labels, splits, patients, classes, checksums."""
