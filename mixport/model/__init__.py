"""Float models: opened from a name, a file or a factory, and run on images."""
