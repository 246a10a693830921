"""What images are like, beside what they teach: how close to real ones, how varied, and whether they are copies."""
