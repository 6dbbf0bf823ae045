"""The runtime without Python: C++ sources, and what copies and builds them."""
