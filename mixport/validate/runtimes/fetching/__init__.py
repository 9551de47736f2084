"""Other runtimes fetched and kept in the cache folder: wheels, npm archives, Debian packages."""
