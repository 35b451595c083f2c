"""All-reduce: every GPU ends with the sum of what all of them had, by one of several plans of transfers."""
