"""`dim view`: a bundle in the browser, served on loopback; and reports that are one file."""
