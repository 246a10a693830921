"""Progress of long calls: one protocol, shown on a terminal, in a notebook and in a log."""
