"""The growing folder of everything that one request drew."""
