"""One reader for every kind of source."""
