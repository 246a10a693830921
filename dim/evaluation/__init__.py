"""Accuracy of classifiers trained on generated data, with controls."""
