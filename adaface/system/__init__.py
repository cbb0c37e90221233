"""Files, locks, threads, devices, text tables and the frame of the command lines."""
