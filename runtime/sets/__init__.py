"""Generating a set: the request, who may write, the pipeline, what was written, the cards."""
