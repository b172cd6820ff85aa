"""Work in many processes: maps, a pool with time limits, and the processes of a distributed run."""
