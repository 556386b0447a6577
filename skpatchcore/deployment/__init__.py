"""Take a fitted detector to other machines."""
