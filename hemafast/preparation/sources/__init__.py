"""What lies in folders and archives: files, then images, then images with domain, class, split and patient."""
