"""The demo: one network, one clip, every scheme side by side, judged by what was measured."""
