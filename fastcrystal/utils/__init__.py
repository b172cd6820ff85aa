"""Files, random numbers, devices, serialization, plotting: what every package may use."""
