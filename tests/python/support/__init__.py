"""Writers of tiny models and adapters, and the oracles they are compared with."""
