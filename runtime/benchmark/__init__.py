"""How many images per second each engine draws on this machine."""
