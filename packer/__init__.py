"""Places GPU slices so that what is left over stays useful. Pure: an explicit inventory in, placements out."""
