"""What the console shows of messages, computed from values: their status, histograms, errors. Pure."""
