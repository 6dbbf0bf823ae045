"""What the program knows of machines."""
