"""Looking at what is there: inspect, verify, doctor, previews, the self test."""
