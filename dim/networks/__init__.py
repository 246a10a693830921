"""The networks: generators, discriminators, classifiers."""
