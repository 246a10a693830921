"""Properties of generated images: how close to real ones, how varied, and whether they are copies."""
