"""How far long work is: one protocol for all calls, and what shows it on a terminal, in a notebook and in a log."""
