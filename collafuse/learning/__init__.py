"""What learns: networks, preconditioning, the one objective, the one training loop. Needs torch."""
