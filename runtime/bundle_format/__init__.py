"""A bundle on disk: manifest, graph contract, files and hashes, where bundles are found and fetched from."""
