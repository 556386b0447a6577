"""Any image a user has to pixels, and where the network's view lies in the image."""
