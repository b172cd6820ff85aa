"""Crystals from the network, only when asked: AFLUX, OPTIMADE, downloads that go on where they were."""
