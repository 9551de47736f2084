"""From a divergence to its node, the codes it read and the likely cause."""
