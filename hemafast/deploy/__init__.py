"""A trained model at work: images in, answers, exported models and explanations out."""
