"""Inspection of bundles and of this machine: inspect, verify, doctor, previews, the self test."""
