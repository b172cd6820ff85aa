"""The making of the default data set."""
