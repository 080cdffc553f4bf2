"""Monitors, one file each: what counters of processes say, label-free quality, drift, labels as they arrive."""
