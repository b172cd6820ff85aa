"""One file per operator: formula, reference, operator, fake, backward, choice of path."""
