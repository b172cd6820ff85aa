"""What is noised, what the network learns, and one step back: a small file per process, in the papers' symbols."""
