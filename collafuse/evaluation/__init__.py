"""What a run is worth: quality against real images, and the demonstration that shows the whole path."""
