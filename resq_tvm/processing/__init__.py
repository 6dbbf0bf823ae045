"""From video frames to network inputs and from network outputs to pictures."""
